"""Random checkpoints: repeatable, normal, and laid out as transformers lays the model out."""

from pathlib import Path

import numpy as np
import pytest

from pllm.build import random_checkpoint as module
from pllm.build.checkpoint import Checkpoint
from pllm.build.random_checkpoint import parameter_shapes, random_checkpoint
from pllm.build.recipe import Recipe
from pllm.runtime.errors import CheckpointError
from pllm.runtime.safetensors_file import SafetensorsFile

from .conftest import CONFIG, write_checkpoint


@pytest.fixture(autouse=True)
def quick_corpus(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Train the tokenizer on one file: the whole library takes seconds."""
    folder = tmp_path_factory.mktemp("stdlib")
    (folder / "this.py").write_text(Path(module.__file__).read_text())
    monkeypatch.setattr(module.sysconfig, "get_path", lambda _: str(folder))


def recipe(seed: int = 0, **config: object) -> Recipe:
    table = {
        "model": {"source": "x", "weights": "random", "seed": seed, "tokenizer_size": 300, "config": CONFIG | config}
    }
    return Recipe.from_table(table, name="tiny-random", folder=Path())


def test_the_same_recipe_gives_the_same_files_and_another_seed_others(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    first = random_checkpoint(recipe())
    stamp = (first / "model.safetensors").stat()
    assert random_checkpoint(recipe()) == first
    assert (first / "model.safetensors").stat() == stamp  # found, not made again
    monkeypatch.setenv("PLLM_CACHE", str(tmp_path / "other"))
    second = random_checkpoint(recipe())
    assert second != first
    for file in first.iterdir():
        assert file.read_bytes() == (second / file.name).read_bytes()
    other = random_checkpoint(recipe(seed=1))
    assert (other / "model.safetensors").read_bytes() != (first / "model.safetensors").read_bytes()
    assert sorted(path.name for path in other.parent.iterdir() if path.name != ".lock") == sorted(
        [other.name, second.name]
    )


def test_a_checkpoint_of_it_opens_and_its_tokenizer_chats() -> None:
    from tokenizers import Tokenizer

    checkpoint = Checkpoint(random_checkpoint(recipe()), label="x")
    tokenizer = Tokenizer.from_file(str(checkpoint.directory / "tokenizer.json"))
    text = "def naïve(x): return 'π🙂'\n"
    assert tokenizer.decode(tokenizer.encode(text).ids, skip_special_tokens=False) == text
    assert tokenizer.get_vocab_size() <= CONFIG["vocab_size"]
    assert checkpoint.config["eos_token_id"] == tokenizer.token_to_id("<|im_end|>")
    assert checkpoint.generation_config["pad_token_id"] == tokenizer.token_to_id("<|endoftext|>")
    assert checkpoint.dtype == "BF16"


def test_values_are_normal_and_norms_are_one() -> None:
    path = random_checkpoint(recipe(hidden_size=64, vocab_size=2000)) / "model.safetensors"
    with SafetensorsFile(path) as file:

        def values(name: str) -> "np.ndarray[tuple[int], np.dtype[np.float32]]":
            bits = np.frombuffer(bytes(file.view(name)), dtype=np.uint16).astype(np.uint32) << 16
            return bits.view(np.float32)

        assert set(values("model.norm.weight")) == {1.0}
        assert set(values("model.layers.0.self_attn.q_norm.weight")) == {1.0}
        drawn = values("model.embed_tokens.weight")
        assert abs(float(drawn.mean())) < 4 * 0.02 / drawn.size**0.5
        assert float(drawn.std()) == pytest.approx(0.02, rel=0.02)
        assert float(np.mean(np.abs(drawn) < 0.02)) == pytest.approx(0.6827, abs=0.01)
        assert not np.array_equal(
            values("model.layers.0.mlp.up_proj.weight"), values("model.layers.1.mlp.up_proj.weight")
        )


@pytest.mark.parametrize(
    "config",
    [
        CONFIG,
        CONFIG | {"tie_word_embeddings": False},
        CONFIG | {"model_type": "qwen2", "head_dim": 4},
        CONFIG | {"model_type": "llama", "attention_bias": True, "mlp_bias": True},
        CONFIG | {"model_type": "mistral", "tie_word_embeddings": False},
    ],
    ids=["qwen3", "qwen3 untied", "qwen2", "llama", "mistral"],
)
def test_names_and_shapes_are_transformers_own(config: dict[str, object]) -> None:
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(**config))
    expected = {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}
    assert {spec.name: spec.shape for spec in parameter_shapes(config, origin="x")} == expected


def test_a_directory_with_a_configuration_lends_its_tokenizer(tmp_path: Path) -> None:
    source = write_checkpoint(tmp_path / "real")
    table = {"model": {"source": str(source), "weights": "random"}}
    made = random_checkpoint(Recipe.from_table(table, name="x", folder=tmp_path))
    assert (made / "tokenizer.json").read_text() == "{}"
    assert "model.embed_tokens.weight" in Checkpoint(made, label="x").tensors


def test_what_cannot_be_drawn_is_refused(own_cache: Path) -> None:
    for config, said in (
        ({"model_type": "mamba"}, "not for 'mamba'"),
        ({"hidden_size": "big"}, "model.config.hidden_size must be a positive integer"),
        ({"vocab_size": -1}, "model.config.vocab_size"),
    ):
        with pytest.raises(CheckpointError, match=said):
            random_checkpoint(recipe(**config))
    bare = Recipe.from_table({"model": {"source": "org/x", "weights": "random"}}, name="x", folder=Path())
    with pytest.raises(CheckpointError, match="need a configuration"):
        random_checkpoint(bare)
    assert not (own_cache / "checkpoints").exists()

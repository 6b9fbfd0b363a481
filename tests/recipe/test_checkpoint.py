"""Checkpoints: what is read, and that nothing hostile is."""

import json
import os
import pickle
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from pllm.build import hub
from pllm.build.checkpoint import Checkpoint
from pllm.build.recipe import Recipe
from pllm.build.resolve import refuse_download
from pllm.runtime.errors import CheckpointError, DoesNotFitError
from pllm.runtime.safetensors_file import TensorSpec, write_safetensors

from .conftest import CONFIG, write_checkpoint


def nobody(config: Any, size: int) -> None:
    raise AssertionError("nothing was to be downloaded")


def opened(path: Path) -> Checkpoint:
    return Checkpoint(path, label="./model")


def refused(path: Path) -> str:
    with pytest.raises(CheckpointError) as caught:
        opened(path)
    assert caught.value.exit_code == 2
    return str(caught.value)


def shard(folder: Path, weight_map: Any, **shards: list[TensorSpec]) -> None:
    """Replace the single weight file by shards with values 0, 1, 2, ..."""
    (folder / "model.safetensors").unlink(missing_ok=True)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    for name, specs in shards.items():
        write_safetensors(
            folder / f"{name}.safetensors", specs, lambda n, s=specs: bytes({t.name: t.nbytes for t in s}[n])
        )


def test_a_checkpoint_tells_what_it_holds(checkpoint_path: Path) -> None:
    checkpoint = opened(checkpoint_path)
    assert checkpoint.config["hidden_size"] == 8
    assert checkpoint.generation_config == {"eos_token_id": 2}
    assert checkpoint.tokenizer_files == ("tokenizer.json",)
    assert list(checkpoint.tensors) == ["w"]
    assert checkpoint.shards == ("model.safetensors",)
    assert checkpoint.dtype == "BF16"
    assert checkpoint.num_bytes == 30


def test_what_ends_an_answer_may_stand_in_the_configuration_alone(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path / "model", eos_token_id=[5, 7])
    assert opened(folder).generation_config == {"eos_token_id": 2}
    (folder / "generation_config.json").write_text('{"temperature": 0.6}')
    assert opened(folder).generation_config == {"eos_token_id": [5, 7], "temperature": 0.6}
    (folder / "generation_config.json").unlink()
    assert opened(folder).generation_config == {"eos_token_id": [5, 7]}
    nested = write_checkpoint(tmp_path / "nested", text_config={"eos_token_id": 9})
    (nested / "generation_config.json").unlink()
    assert opened(nested).generation_config == {"eos_token_id": 9}


@pytest.mark.parametrize("text", ['{"temperature": "hot"}', '{"top_k": 1e9}', '{"eos_token_id": [-4]}'])
def test_recommendations_that_cannot_be_followed_are_refused(text: str, checkpoint_path: Path) -> None:
    (checkpoint_path / "generation_config.json").write_text(text)
    assert re.search("temperature|top_k|eos_token_id", refused(checkpoint_path))


def test_opening_imports_neither_torch_nor_transformers(checkpoint_path: Path) -> None:
    script = (
        "import sys; from pathlib import Path; from pllm.build.checkpoint import Checkpoint; "
        "Checkpoint(Path(sys.argv[1]), label='x').fingerprint(); "
        "heavy = {'torch', 'transformers', 'huggingface_hub'} & set(sys.modules); assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", script, str(checkpoint_path)], check=True)


def test_tensors_come_shard_by_shard_in_every_dtype(checkpoint_path: Path) -> None:
    import torch

    one = [TensorSpec("a", "F32", (2, 3)), TensorSpec("b", "BF16", (4,))]
    two = [
        TensorSpec("c", "I64", (3,)),
        TensorSpec("d", "F16", ()),
        TensorSpec("e", "BOOL", (2,)),
        TensorSpec("f", "F32", (0,)),
    ]
    shard(
        checkpoint_path,
        {**{t.name: "one.safetensors" for t in one}, **{t.name: "two.safetensors" for t in two}},
        one=one,
        two=two,
    )
    checkpoint = opened(checkpoint_path)
    assert checkpoint.shards == ("one.safetensors", "two.safetensors")
    dtypes = {
        "a": torch.float32,
        "b": torch.bfloat16,
        "c": torch.int64,
        "d": torch.float16,
        "e": torch.bool,
        "f": torch.float32,
    }
    held = {name: checkpoint.tensor(name) for name in checkpoint.tensors}
    for spec in one + two:
        assert held[spec.name].dtype == dtypes[spec.name]
        assert tuple(held[spec.name].shape) == spec.shape
    with pytest.raises(KeyError):
        checkpoint.tensor("z")


def test_a_tensor_has_its_values_though_its_file_is_not_aligned(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path / "odd")
    header = json.dumps({"w": {"dtype": "F32", "shape": [3], "data_offsets": [0, 12]}}).encode()
    header += b" " * ((3 - len(header)) % 4)
    data = np.array([1.5, -2.0, 3.0], dtype=np.float32).tobytes()
    (folder / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + data)
    assert opened(folder).tensors["w"].entry.offset % 4
    assert opened(folder).tensor("w").tolist() == [1.5, -2.0, 3.0]


def test_writing_to_a_tensor_changes_nothing_on_the_disk(checkpoint_path: Path) -> None:
    before = (checkpoint_path / "model.safetensors").read_bytes()
    opened(checkpoint_path).tensor("w").zero_()
    assert (checkpoint_path / "model.safetensors").read_bytes() == before


def test_the_fingerprint_is_the_content_s(checkpoint_path: Path, tmp_path: Path) -> None:
    first = opened(checkpoint_path).fingerprint()
    assert opened(write_checkpoint(tmp_path / "copy")).fingerprint() == first
    (checkpoint_path / "README.md").write_text("no part of a build")
    assert opened(checkpoint_path).fingerprint() == first
    for name in ("config.json", "tokenizer.json", "generation_config.json"):
        path = checkpoint_path / name
        before = path.read_bytes()
        path.write_bytes(before + b" ")
        assert opened(checkpoint_path).fingerprint() != first
        path.write_bytes(before)
    assert opened(checkpoint_path).fingerprint() == first


class Bomb:
    def __reduce__(self) -> Any:
        return os.mkdir, ("ran",)


def test_pickled_weights_are_refused_and_not_read(
    checkpoint_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (checkpoint_path / "model.safetensors").unlink()
    (checkpoint_path / "pytorch_model.bin").write_bytes(pickle.dumps(Bomb()))
    assert "its weights are pickles" in refused(checkpoint_path)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("name", ["config.json", "tokenizer_config.json"])
def test_code_of_the_checkpoint_s_own_is_refused(checkpoint_path: Path, name: str) -> None:
    (checkpoint_path / name).write_text(json.dumps(CONFIG | {"auto_map": {"AutoModelForCausalLM": "evil.Model"}}))
    (checkpoint_path / "evil.py").write_text("raise SystemExit('ran')")
    assert f"{name} asks for code of the checkpoint's own (auto_map)" in refused(checkpoint_path)


@pytest.mark.parametrize(
    "name", ["../outside.safetensors", "/etc/passwd", "a/b.safetensors", "..", "", "x.bin", "a\0.safetensors", 3, None]
)
def test_a_shard_outside_the_directory_is_refused(checkpoint_path: Path, name: Any) -> None:
    write_safetensors(
        checkpoint_path.parent / "outside.safetensors", [TensorSpec("w", "F32", (1,))], lambda _: bytes(4)
    )
    shard(checkpoint_path, {"w": name})
    assert "which is no file name of its own" in refused(checkpoint_path)


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "tokenizer.json"])
def test_a_link_out_of_the_directory_is_refused(checkpoint_path: Path, name: str) -> None:
    outside = checkpoint_path.parent / "outside"
    (checkpoint_path / name).rename(outside)
    (checkpoint_path / name).symlink_to(outside)
    assert f"{name} is a link out of the checkpoint" in refused(checkpoint_path)


def test_links_within_the_hub_s_cache_are_what_it_is_made_of(checkpoint_path: Path, tmp_path: Path) -> None:
    model = tmp_path / "hub/models--org--name"
    snapshot = model / "snapshots/abc"
    snapshot.mkdir(parents=True)
    (model / "blobs").mkdir()
    for file in checkpoint_path.iterdir():
        blob = model / "blobs" / file.name.encode().hex()
        file.rename(blob)
        (snapshot / file.name).symlink_to(f"../../blobs/{blob.name}")
    assert list(opened(snapshot).tensors) == ["w"]
    (snapshot / "config.json").unlink()
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    (snapshot / "config.json").symlink_to("../../../../config.json")
    assert "config.json is a link out" in refused(snapshot)


def test_links_that_lead_nowhere_or_in_circles(checkpoint_path: Path) -> None:
    (checkpoint_path / "config.json").unlink()
    (checkpoint_path / "config.json").symlink_to("config.json")
    assert "config.json is missing" in refused(checkpoint_path)


def test_a_fifo_does_not_hang(checkpoint_path: Path) -> None:
    (checkpoint_path / "model.safetensors").unlink()
    os.mkfifo(checkpoint_path / "model.safetensors")
    assert "model.safetensors is not a plain file" in refused(checkpoint_path)


@pytest.mark.parametrize("text", ["", "{", "[]", "3", "[" * 100_000, '{"a":' * 100_000, '{"a": 1} x'])
def test_malformed_json_is_refused(checkpoint_path: Path, text: str) -> None:
    (checkpoint_path / "config.json").write_text(text)
    assert "config.json is malformed" in refused(checkpoint_path)


def test_what_is_missing_is_named(checkpoint_path: Path) -> None:
    assert "there is no directory" in refused(checkpoint_path / "none")
    for name in ("tokenizer.json", "config.json"):
        moved = checkpoint_path.parent / name
        (checkpoint_path / name).rename(moved)
        assert f"{name} is missing" in refused(checkpoint_path)
        moved.rename(checkpoint_path / name)
    (checkpoint_path / "model.safetensors").unlink()
    assert "neither model.safetensors nor" in refused(checkpoint_path)
    shard(checkpoint_path, {"w": "one.safetensors"})
    assert "one.safetensors is missing" in refused(checkpoint_path)
    shard(checkpoint_path, {"w": "one.safetensors"}, one=[TensorSpec("v", "F32", (1,))])
    assert "looks for w in one.safetensors, which lacks it" in refused(checkpoint_path)
    shard(checkpoint_path, {})
    assert "has no weight_map" in refused(checkpoint_path)


def test_damaged_weights_are_named(checkpoint_path: Path) -> None:
    (checkpoint_path / "model.safetensors").write_bytes((2**62).to_bytes(8, "little") + b"{}")
    assert "model.safetensors: its header claims" in refused(checkpoint_path)


def test_quantised_checkpoints_of_an_unknown_kind_are_refused_by_name(tmp_path: Path) -> None:
    """Those that are read: tests/build/test_quantized_checkpoint.py."""
    said = refused(write_checkpoint(tmp_path / "q", quantization_config={"quant_method": "hqq"}))
    assert "quantised in a way that is not read: quant_method 'hqq'" in said


@pytest.mark.parametrize(
    ("source", "said"),
    [("a b", "neither a directory nor a Hub id"), ("a/b/c", "neither"), ("o/n", "not in the Hub's cache")],
)
def test_a_source_that_cannot_be_had_says_why(source: str, said: str) -> None:
    with pytest.raises(CheckpointError, match=said):
        hub.download(source, "main", nobody)


def test_a_recipe_s_directory_is_relative_to_it(checkpoint_path: Path) -> None:
    recipe = checkpoint_path.parent / "mine.toml"
    recipe.write_text('[model]\nsource = "./model"\n')
    assert Checkpoint.open(Recipe.load(recipe), nobody).label == "./model"


def test_a_model_of_the_hub_is_refused_by_its_size_before_its_weights_come(
    checkpoint_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import huggingface_hub

    asked: list[list[str]] = []

    def snapshot(source: str, *, revision: str, allow_patterns: list[str], ignore_patterns: list[str]) -> str:
        asked.append(allow_patterns)
        return str(checkpoint_path)

    files = [("model-1.safetensors", 40 << 30), ("model-2.safetensors", 26 << 30), ("pytorch_model.bin", 66 << 30)]
    info = SimpleNamespace(siblings=[SimpleNamespace(rfilename=name, size=size) for name, size in files])
    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot)
    monkeypatch.setattr(huggingface_hub, "HfApi", lambda: SimpleNamespace(model_info=lambda *_, **__: info))
    recipe = Recipe.for_model("org/large")
    weights = checkpoint_path / "model.safetensors"
    weights.rename(checkpoint_path / "aside")
    with pytest.raises(DoesNotFitError, match=r"weights 66\.0 GiB") as caught:
        Checkpoint.open(recipe, lambda config, size: refuse_download(recipe, config, size, 24 << 30))
    assert caught.value.exit_code == 2
    assert not any("safetensors" in pattern for pattern in asked[0])
    assert len(asked) == 1
    (checkpoint_path / "aside").rename(weights)
    assert Checkpoint.open(recipe, nobody).revision == "model"  # it is in the cache: nothing to refuse

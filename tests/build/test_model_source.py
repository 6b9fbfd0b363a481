"""A model's weights, made of a checkpoint's tensors one at a time, are those that from_pretrained loads."""

import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from pllm.build.checkpoint import Checkpoint
from pllm.build.export import paged_attention
from pllm.build.model_source import ModelWeights, load_config, load_reference, skeleton
from pllm.runtime.errors import CheckpointError

from .graphs import FAMILIES, checkpoint_of

MOE = ("mixtral", "qwen3_moe", "gpt_oss")


def weights_of(checkpoint: Checkpoint) -> tuple[transformers.PreTrainedModel, ModelWeights]:
    model = skeleton(load_config(checkpoint), paged_attention)
    return model, ModelWeights(model, checkpoint)


def sharded(family: str, directory: Path) -> Checkpoint:
    """The family's checkpoint again, in shards so small that a layer's experts lie in several."""
    whole = checkpoint_of(family, directory / "whole")
    model = transformers.AutoModelForCausalLM.from_pretrained(whole.directory, dtype="auto")
    model.save_pretrained(directory / "shards", max_shard_size="40KB")
    shutil.copy(whole.directory / "tokenizer.json", directory / "shards")
    return Checkpoint(directory / "shards", label=family)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_weight_is_what_from_pretrained_loads(family: str, tmp_path: Path) -> None:
    checkpoint = sharded(family, tmp_path)
    assert len(checkpoint.shards) > 2
    model, weights = weights_of(checkpoint)
    reference = load_reference(checkpoint)
    expected = dict(reference.named_parameters(remove_duplicate=False)) | dict(reference.named_buffers())
    for name in [name for name, _ in (*model.named_parameters(remove_duplicate=False), *model.named_buffers())]:
        assert name in weights
        torch.testing.assert_close(weights.tensor(name).to(expected[name].dtype), expected[name], atol=0, rtol=0)


@pytest.mark.parametrize("family", MOE)
def test_one_layer_at_a_time(family: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A weight is made of its own layer's tensors, no tensor is read twice, and no model is ever loaded."""
    checkpoint = sharded(family, tmp_path)
    model, weights = weights_of(checkpoint)
    read: list[str] = []
    tensor = Checkpoint.tensor

    def counted(self: Checkpoint, name: str) -> torch.Tensor:
        read.append(name)
        return tensor(self, name)

    def loads(*_: object, **__: object) -> None:
        raise AssertionError("the whole model is loaded")

    monkeypatch.setattr(Checkpoint, "tensor", counted)
    monkeypatch.setattr(transformers.PreTrainedModel, "from_pretrained", loads)
    seen: list[str] = []
    for name, parameter in model.named_parameters():
        read.clear()
        assert weights.tensor(name).shape == parameter.shape
        layer = re.search(r"layers\.\d+\.", name)
        assert all(layer is None or layer[0] in stored for stored in read)
        seen += read
    assert sorted(seen) == sorted(checkpoint.tensors)
    experts = [name for name, _ in model.named_parameters() if "experts." in name]
    assert experts
    if family != "gpt_oss":  # whose checkpoints store all experts of a layer in one tensor, too
        assert not set(experts) & set(checkpoint.tensors)


def rewritten(
    checkpoint: Checkpoint, change: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]
) -> Checkpoint:
    path = checkpoint.directory / "model.safetensors"
    tensors = {name: tensor.clone() for name, tensor in load_file(path).items()}
    path.unlink()
    save_file(change(tensors), path, metadata={"format": "pt"})
    return Checkpoint(checkpoint.directory, label=checkpoint.label)


def test_a_tied_weight_may_be_stored_by_either_name(tmp_path: Path) -> None:
    checkpoint = checkpoint_of("qwen3", tmp_path)
    embedding = checkpoint.tensor("model.embed_tokens.weight").clone()
    checkpoint = rewritten(
        checkpoint,
        lambda tensors: {name.replace("model.embed_tokens", "lm_head"): tensor for name, tensor in tensors.items()},
    )
    assert "model.embed_tokens.weight" not in checkpoint.tensors
    _, weights = weights_of(checkpoint)
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        torch.testing.assert_close(weights.tensor(name), embedding, atol=0, rtol=0)


def test_a_base_models_names_are_found(tmp_path: Path) -> None:
    """A checkpoint of the model without its head leaves the prefix out."""
    checkpoint = checkpoint_of("qwen3", tmp_path)
    norm = checkpoint.tensor("model.norm.weight").clone()
    checkpoint = rewritten(
        checkpoint, lambda tensors: {name.removeprefix("model."): tensor for name, tensor in tensors.items()}
    )
    _, weights = weights_of(checkpoint)
    torch.testing.assert_close(weights.tensor("model.norm.weight"), norm, atol=0, rtol=0)


def test_a_stored_table_that_the_model_computes_is_left_alone(tmp_path: Path) -> None:
    """Checkpoints of 2023 hold the inverse frequencies of RoPE, which transformers no longer reads."""
    name = "model.rotary_emb.inv_freq"
    checkpoint = rewritten(
        checkpoint_of("llama", tmp_path), lambda tensors: tensors | {name: torch.full((8,), float("nan"))}
    )
    _, weights = weights_of(checkpoint)
    assert weights.tensor(name).isfinite().all()


def test_what_is_missing_is_named(tmp_path: Path) -> None:
    lost = "model.layers.1.mlp.down_proj.weight"
    checkpoint = rewritten(
        checkpoint_of("llama", tmp_path), lambda tensors: {n: tensor for n, tensor in tensors.items() if n != lost}
    )
    _, weights = weights_of(checkpoint)
    assert lost not in weights
    with pytest.raises(CheckpointError, match=re.escape(f"lacks {lost}")):
        weights.tensor(lost)


def test_experts_that_do_not_fit_together_are_refused(tmp_path: Path) -> None:
    odd = "model.layers.1.mlp.experts.2.down_proj.weight"
    checkpoint = rewritten(
        checkpoint_of("qwen3_moe", tmp_path), lambda tensors: tensors | {odd: tensors[odd][:-1].clone()}
    )
    _, weights = weights_of(checkpoint)
    with pytest.raises(
        CheckpointError, match=r"cannot make model\.layers\.1\.mlp\.experts\.down_proj of its 4 tensors"
    ):
        weights.tensor("model.layers.1.mlp.experts.down_proj")

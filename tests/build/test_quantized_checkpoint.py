"""Checkpoints that are quantised already, made by the formats' own libraries (tests/fixtures/quantized/make.py).

What is read of them, what is kept, and that the built graph says what their libraries mean."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from pllm.build.checkpoint import Checkpoint
from pllm.build.export import paged_attention
from pllm.build.model_source import ModelWeights, load_config, load_reference, skeleton
from pllm.build.passes import apply_passes
from pllm.build.quantize import materialise
from pllm.build.traced import WeightForm
from pllm.kernels.packing import unpack_linear
from pllm.kernels.quantization import alternate_gates, dequantize, dequantize_int4, unpack_int4, unpack_quantized
from pllm.runtime.errors import CheckpointError

from .graphs import PagedModel, traced_of

FIXTURES = Path(__file__).parents[1] / "fixtures" / "quantized"
ZEROS = ("awq-g32", "w4a16-asym")
INT4 = ("gptq-g32", "gptq-g128", "w4a16", *ZEROS)
INT8 = ("w8a8", "w8a16")
OTHERS = ("gptq-act-order", "fp8-channel", "fp8-tensor")
LAYERS = 2


def opened(name: str) -> tuple[Checkpoint, torch.Tensor, torch.Tensor]:
    """The checkpoint, the tokens, and the logits that its library's weights make in float32."""
    expected = load_file(FIXTURES / name / "expected.safetensors")
    return Checkpoint(FIXTURES / name, label=name), expected["tokens"], expected["logits"]


def weights_of(checkpoint: Checkpoint) -> ModelWeights:
    return ModelWeights(skeleton(load_config(checkpoint), paged_attention), checkpoint)


def error(logits: torch.Tensor, expected: torch.Tensor) -> float:
    """Of their norms. Random weights let what rounding costs grow; a weight in the wrong place makes 1.4."""
    return float((logits - expected).norm() / expected.norm())


@pytest.mark.parametrize("name", [*INT4, *INT8, *OTHERS])
def test_weights_mean_what_their_library_says_and_the_graph_says_it_too(name: str) -> None:
    """The graph with weights stored wide, which rounds nothing."""
    checkpoint, tokens, expected = opened(name)
    with torch.no_grad():
        logits = load_reference(checkpoint)(tokens[None]).logits[0]
    assert error(logits, expected) < (2e-3 if "gptq" in name else 1e-5)  # gptqmodel multiplies in half precision
    traced, kv = traced_of(checkpoint)
    apply_passes(traced, torch.float32, stored=weights_of(checkpoint).quantized)
    model = PagedModel(traced, kv, checkpoint)
    assert error(model.step({0: tokens[:-2].tolist()}), logits[-3:-2]) < 1e-5
    assert error(model.step({0: tokens[-2:].tolist()}), logits[-1:]) < 1e-5


@pytest.mark.parametrize(
    ("name", "form"), [*((each, WeightForm.INT4) for each in INT4), *((each, WeightForm.INT8) for each in INT8)]
)
def test_whole_numbers_are_kept(name: str, form: WeightForm) -> None:
    """All products of the layers, merged as they are, in the checkpoint's own numbers: int8 to the last bit, int4 but
    for scales that are rounded to bfloat16; zero points make a product of their own. The table is rounded to int8."""
    checkpoint, tokens, expected = opened(name)
    weights = weights_of(checkpoint)
    traced, kv = traced_of(checkpoint)
    (said,) = (
        each for each in apply_passes(traced, torch.float32, form, stored=weights.quantized) if "quantize" in each
    )
    assert f"{4 * LAYERS} of them as the checkpoint has rounded them" in said
    assert "again" not in said
    assert (f"{4 * LAYERS} with zero points" in said) == (name in ZEROS)
    kept = {node: source for node, source in traced.sources.items() if source.kept and source.form is form}
    assert len(kept) == 4 * LAYERS
    for node, source in kept.items():
        meant = torch.cat([weights.tensor(part) for part in source.parts])
        meant = alternate_gates(meant) if source.gates_alternate else meant
        packed, scale = (materialise(traced.sources[each], weights) for each in (node, f"{node}_scale"))
        if form is WeightForm.INT8:
            assert torch.equal(dequantize(unpack_quantized(packed, *meant.shape), scale), meant)
        else:
            found = dequantize_int4(*unpack_int4(packed, scale, len(meant)))
            if name in ZEROS:
                offsets = unpack_linear(materialise(traced.sources[f"{node}_offset"], weights), len(meant))
                found += offsets.repeat_interleave(source.group, dim=1)
            assert ((found - meant).abs() <= meant.abs() * 2**-8).all()
            assert source.group == (128 if name == "gptq-g128" else 32)
    logits = PagedModel(traced, kv, checkpoint).step({0: tokens.tolist()})
    assert error(logits, expected[-1:]) < 0.15  # activations are rounded to int8


@pytest.mark.parametrize("name", ["fp8-channel", "fp8-tensor"])
def test_float8_is_stored_as_it_is(name: str) -> None:
    """In bfloat16, which it fits, and products are scaled: the weight times its scale would not fit."""
    checkpoint, tokens, expected = opened(name)
    weights = weights_of(checkpoint)
    traced, kv = traced_of(checkpoint)
    (said,) = (
        each for each in apply_passes(traced, torch.bfloat16, stored=weights.quantized) if "pack_linears" in each
    )
    assert f"{4 * LAYERS} of them the checkpoint's own float8" in said
    for node, source in traced.sources.items():
        if source.kept and source.form is WeightForm.PACKED:
            meant = torch.cat([weights.tensor(part) for part in source.parts])
            packed, scale = (materialise(traced.sources[each], weights) for each in (node, f"{node}_scale"))
            assert packed.dtype == torch.bfloat16
            assert torch.equal(unpack_linear(packed, len(meant)).float() * scale[:, None], meant)
    logits = PagedModel(traced, kv, checkpoint).step({0: tokens.tolist()})
    assert error(logits, expected[-1:]) < 1e-5


@pytest.mark.parametrize(
    ("name", "form", "reason"),
    [
        ("gptq-act-order", WeightForm.INT4, "its inputs are not in the order of their groups"),
        ("gptq-g32", WeightForm.INT8, "it has 4 bits, and 8 are stored"),
        ("w8a8", WeightForm.INT4, "it has 8 bits, and 4 are stored"),
        ("fp8-channel", WeightForm.INT8, "it is float8"),
    ],
)
def test_what_cannot_be_kept_is_rounded_again_and_says_why(name: str, form: WeightForm, reason: str) -> None:
    checkpoint, tokens, expected = opened(name)
    traced, kv = traced_of(checkpoint)
    stored = weights_of(checkpoint).quantized
    (said,) = (each for each in apply_passes(traced, torch.float32, form, stored=stored) if "quantize" in each)
    assert f"{4 * LAYERS} rounded again: {reason}" in said
    assert not any(source.kept for source in traced.sources.values())
    logits = PagedModel(traced, kv, checkpoint).step({0: tokens.tolist()})
    assert error(logits, expected[-1:]) < (0.6 if form is WeightForm.INT4 else 0.15)


def test_reordered_inputs_keep_their_groups() -> None:
    checkpoint, _, _ = opened("gptq-act-order")
    weight = checkpoint.quantized("model.layers.0.self_attn.q_proj.weight")
    assert weight.group_of is not None
    assert sorted(weight.group_of.tolist()) == [group for group in range(4) for _ in range(32)]


def changed(folder: Path, name: str, **quantization: Any) -> Path:
    shutil.copytree(FIXTURES / name, folder)
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"] |= quantization
    (folder / "config.json").write_text(json.dumps(config))
    return folder


@pytest.mark.parametrize(
    ("name", "quantization", "said"),
    [
        ("gptq-g32", {"bits": 3}, "GPTQ with bits 3"),
        ("gptq-g32", {"checkpoint_format": "marlin"}, "checkpoint_format 'marlin'"),
        ("awq-g32", {"version": "gemv"}, "AWQ with 4 bits, version 'gemv'"),
        ("w8a8", {"format": "marlin-24"}, "in the format 'marlin-24'"),
        ("w8a8", {"config_groups": {}}, "with 0 config_groups"),
        ("w8a8", {"quant_method": "bitsandbytes"}, "quant_method 'bitsandbytes'"),
        ("w8a8", {"quant_method": "gptq"}, "GPTQ with bits None"),
    ],
)
def test_what_is_not_read_is_refused_with_the_reason(
    tmp_path: Path, name: str, quantization: dict[str, Any], said: str
) -> None:
    folder = changed(tmp_path / "model", name, **quantization)
    with pytest.raises(CheckpointError) as caught:
        Checkpoint(folder, label="model")
    assert said in str(caught.value)
    assert "read are GPTQ in 4 and 8 bits" in str(caught.value)


def test_tensors_that_are_missing_or_of_other_shapes_are_refused(tmp_path: Path) -> None:
    folder = changed(tmp_path / "missing", "gptq-g32")
    tensors = load_file(folder / "model.safetensors")
    module = "model.layers.0.mlp.up_proj"
    lacking = {name: tensor for name, tensor in tensors.items() if name != f"{module}.scales"}
    save_file(lacking, folder / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"up_proj is not what GPTQ, int4 stores: it has qweight, qzeros"):
        Checkpoint(folder, label="model")
    tensors[f"{module}.scales"] = tensors[f"{module}.scales"][:3].clone()
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"up_proj.weight is no weight of GPTQ, int4"):
        Checkpoint(folder, label="model").tensor(f"{module}.weight")
    plain = {name: tensor for name, tensor in tensors.items() if "qweight" not in name}
    save_file(plain, folder / "model.safetensors")
    with pytest.raises(CheckpointError, match="says that its weights are quantised"):
        Checkpoint(folder, label="model")

"""Weights as whole numbers: what the pass does to the graph, and that the graph computes what its weights stand for."""

from pathlib import Path

import pytest
import torch

from pllm.build.checkpoint import Checkpoint
from pllm.build.passes import apply_passes
from pllm.build.traced import Traced, WeightForm, value
from pllm.kernels.quantization import int4_shape, quantized_shape

from .graphs import SIZES, PagedModel, checkpoint_of, traced_of

aten, pllm = torch.ops.aten, torch.ops.pllm
LAYERS = SIZES["num_hidden_layers"]
SEQUENCES = {0: [5, 9, 40, 71, 8], 1: list(range(20, 45))}


@pytest.fixture(scope="module", params=["qwen2", "qwen3"])
def checkpoint(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    """qwen3's head shares the embedding's table; qwen2's does not, and its query, key and value have biases."""
    folder: Path = tmp_path_factory.mktemp(request.param)
    return checkpoint_of(request.param, folder)


def forms(traced: Traced) -> list[WeightForm]:
    return [source.form for source in traced.sources.values()]


def logits(checkpoint: Checkpoint, form: WeightForm | None) -> tuple[Traced, torch.Tensor]:
    traced, kv = traced_of(checkpoint)
    apply_passes(traced, torch.float32, form)
    model = PagedModel(traced, kv, checkpoint)
    first = model.step(SEQUENCES)
    return traced, torch.cat([first, model.step({0: [3], 1: [4]})])


@pytest.mark.parametrize(("form", "largest"), [(WeightForm.INT8, 0.15), (WeightForm.INT4, 0.6)])
def test_the_graph_computes_what_it_did_but_for_rounding(
    checkpoint: Checkpoint, form: WeightForm, largest: float
) -> None:
    """Random weights let a rounding of 1% a product grow to several percent; a weight in the wrong place makes 140."""
    _, expected = logits(checkpoint, None)
    traced, actual = logits(checkpoint, form)
    assert len(traced.calls(pllm.quantized_linear.default)) == 3 * LAYERS + 1
    assert len(traced.calls(pllm.quantized_gated_linear.default)) == LAYERS
    assert not traced.calls(pllm.silu_mul.default)
    assert len(traced.calls(pllm.quantized_embedding.default)) == 1
    assert not traced.calls(pllm.packed_linear.default) + traced.calls(aten.linear.default)
    error = float((actual - expected).norm() / expected.norm())
    assert 0 < error < largest


def test_tables_heads_and_odd_widths_are_int8_in_the_int4_scheme(checkpoint: Checkpoint) -> None:
    traced, _ = traced_of(checkpoint)
    apply_passes(traced, torch.float32, WeightForm.INT4)
    tables = len({call.args[1] for call in traced.calls(pllm.quantized_embedding.default)})
    tables += traced.calls(pllm.quantized_linear.default)[-1].args[1].name not in {
        call.args[1].name for call in traced.calls(pllm.quantized_embedding.default)
    }
    assert forms(traced).count(WeightForm.INT8) == tables
    assert forms(traced).count(WeightForm.INT4) == 4 * LAYERS


def test_scales_stand_beside_their_weights(checkpoint: Checkpoint) -> None:
    """They are made of one rounding, one after the other; and the program's order is the graph's."""
    traced, _ = traced_of(checkpoint)
    apply_passes(traced, torch.float32, WeightForm.INT8)
    placeholders = [node for node in traced.graph.nodes if node.op == "placeholder"]
    assert [spec.arg.name for spec in traced.program.graph_signature.input_specs] == [n.name for n in placeholders]
    products = traced.calls(pllm.quantized_linear.default) + traced.calls(pllm.quantized_gated_linear.default)
    for call in products:
        weight, scale = call.args[1:3]
        assert placeholders.index(scale) == placeholders.index(weight) + 1
        assert traced.sources[scale.name].form is WeightForm.INT8_SCALE
        rows, columns = value(scale).shape[0], value(call.args[0]).shape[-1]
        assert tuple(value(weight).shape) == quantized_shape(rows, columns)


def test_int4_weights_have_half_a_byte_each() -> None:
    assert int4_shape(64, 256) == (2, 32, 32, 4)

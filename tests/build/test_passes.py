"""Each pass changes the graph as it says, and not what the graph computes."""

from pathlib import Path

import pytest
import torch

from pllm.build.checkpoint import Checkpoint
from pllm.build.passes import PASSES, apply_passes
from pllm.build.passes.drop_assertions import drop_assertions
from pllm.build.passes.merge_linears import merge_linears
from pllm.build.passes.pack_experts import pack_experts
from pllm.build.passes.pack_linears import pack_linears
from pllm.build.traced import Traced, WeightForm

from .graphs import SIZES, PagedModel, checkpoint_of, traced_of

aten, pllm = torch.ops.aten, torch.ops.pllm
LAYERS = SIZES["num_hidden_layers"]
SEQUENCES = {0: [5, 9, 40, 71, 8], 1: list(range(20, 45))}


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Checkpoint]:
    """qwen3's head shares the embedding's table; qwen2's does not, and its query, key and value have biases."""
    return {family: checkpoint_of(family, tmp_path_factory.mktemp(family)) for family in ("qwen2", "qwen3")}


@pytest.fixture(params=["qwen2", "qwen3"])
def checkpoint(request: pytest.FixtureRequest, checkpoints: dict[str, Checkpoint]) -> Checkpoint:
    return checkpoints[request.param]


def count(traced: Traced, target: torch._ops.OpOverload) -> int:
    return len(traced.calls(target))


def assertions(traced: Traced) -> int:
    return sum("_assert" in str(node.target) for node in traced.graph.nodes)


def logits(checkpoint: Checkpoint, *passes) -> tuple[Traced, torch.Tensor]:
    traced, kv = traced_of(checkpoint)
    for run in passes:
        run(traced, torch.float32)
        traced.drop_unused()
    model = PagedModel(traced, kv, checkpoint)
    first = model.step(SEQUENCES)
    return traced, torch.cat([first, model.step({0: [3], 1: [4]})])


def test_drop_assertions(checkpoint: Checkpoint) -> None:
    before, expected = logits(checkpoint)
    after, actual = logits(checkpoint, drop_assertions)
    assert assertions(before) > 0
    assert assertions(after) == 0
    assert len(after.graph.nodes) < len(before.graph.nodes)
    torch.testing.assert_close(actual, expected, atol=0, rtol=0)


def test_merge_linears(checkpoint: Checkpoint) -> None:
    before, expected = logits(checkpoint)
    after, actual = logits(checkpoint, merge_linears)
    assert count(before, aten.linear.default) == 7 * LAYERS + 1
    assert count(after, aten.linear.default) == 4 * LAYERS + 1  # qkv, out, gate and up, down; the head
    assert not any("q_proj" in part and len(s.parts) == 1 for s in after.sources.values() for part in s.parts)
    torch.testing.assert_close(actual, expected, atol=1e-5, rtol=0)


def test_pack_linears(checkpoint: Checkpoint) -> None:
    before, expected = logits(checkpoint)
    after, actual = logits(checkpoint, pack_linears)
    assert count(after, aten.linear.default) == count(after, aten.embedding.default) == 0
    assert count(after, pllm.packed_linear.default) == count(before, aten.linear.default)
    assert count(after, pllm.packed_embedding.default) == 1
    torch.testing.assert_close(actual, expected, atol=1e-5, rtol=0)


def test_a_weight_with_another_use_stays_as_it_is(checkpoint: Checkpoint) -> None:
    """One weight's norm is added to the logits, and another weight is multiplied by itself."""

    def use_otherwise(traced: Traced, storage: torch.dtype) -> str:
        first, second = (node.args[1] for node in traced.calls(aten.linear.default)[:2])
        (output,) = [node for node in traced.graph.nodes if node.op == "output"]
        (logits,) = output.args[0]
        with traced.graph.inserting_before(output), traced.fake_mode:
            norm = traced.graph.call_function(aten.sum.default, (first,))
            square = traced.graph.call_function(aten.linear.default, (second, second))
            total = traced.graph.call_function(aten.sum.default, (square,))
            changed = logits
            for term in (norm, total):
                changed = traced.graph.call_function(aten.add.Tensor, (changed, term))
                changed.meta["val"] = logits.meta["val"]
        output.args = ((changed,),)
        specs = traced.program.graph_signature.output_specs
        specs[-1].arg = type(specs[-1].arg)(name=changed.name)
        return ""

    before, expected = logits(checkpoint, use_otherwise)
    after, actual = logits(checkpoint, use_otherwise, pack_linears)
    assert count(after, aten.linear.default) == 3  # the two, and the product of the second with itself
    assert count(after, pllm.packed_linear.default) == count(before, aten.linear.default) - 3
    assert all(node.args[1].meta["val"].ndim == 2 for node in after.calls(aten.linear.default))  # packed ones have 3
    torch.testing.assert_close(actual, expected, atol=1e-4, rtol=1e-5)


@pytest.mark.parametrize(("family", "tables"), [("qwen2", 2), ("qwen3", 1)])
def test_a_shared_table_is_packed_once(checkpoints: dict[str, Checkpoint], family: str, tables: int) -> None:
    traced, _ = logits(checkpoints[family], pack_linears)
    (lookup,), head = traced.calls(pllm.packed_embedding.default), traced.calls(pllm.packed_linear.default)[-1]
    assert len({lookup.args[1], head.args[1]}) == tables


@pytest.mark.parametrize(("family", "transposed"), [("mixtral", False), ("gpt_oss", True)])
def test_pack_experts(family: str, transposed: bool, tmp_path: Path) -> None:
    checkpoint = checkpoint_of(family, tmp_path)
    _, expected = logits(checkpoint)
    after, actual = logits(checkpoint, pack_experts)
    assert count(after, pllm.packed_grouped_linear.default) == 2 * LAYERS
    assert not any("grouped_mm" in str(node.target) for node in after.graph.nodes)
    packed = [source for source in after.sources.values() if source.form is WeightForm.PACKED]
    assert len(packed) == 2 * LAYERS
    assert {source.transposed for source in packed} == {transposed}
    torch.testing.assert_close(actual, expected, atol=1e-5, rtol=0)


def test_all_passes(checkpoint: Checkpoint) -> None:
    _, expected = logits(checkpoint)
    after, actual = logits(checkpoint, *PASSES)
    assert assertions(after) == count(after, aten.linear.default) == 0
    assert count(after, pllm.packed_linear.default) == 4 * LAYERS + 1
    torch.testing.assert_close(actual, expected, atol=1e-5, rtol=0)


def test_every_pass_says_what_it_did_and_is_done_the_first_time(checkpoint: Checkpoint) -> None:
    traced, _ = traced_of(checkpoint)
    said = apply_passes(traced, torch.float32)
    assert [line.partition(":")[0] for line in said] == [run.__name__ for run in PASSES]
    nodes = len(traced.graph.nodes)
    apply_passes(traced, torch.float32)
    assert len(traced.graph.nodes) == nodes


def test_the_graph_has_no_constant_that_it_does_not_use(checkpoint: Checkpoint) -> None:
    traced, _ = traced_of(checkpoint)
    apply_passes(traced, torch.float32)
    placeholders = {node.name: node for node in traced.graph.nodes if node.op == "placeholder"}
    assert set(traced.sources) == set(traced.names()) <= set(placeholders)
    assert all(placeholders[name].users for name in traced.sources)

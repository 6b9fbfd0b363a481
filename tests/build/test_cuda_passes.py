"""The passes for CUDA: what each does to the graph, that it computes what it did, and how many kernels are left.

The operators run as their specifications, on CPU tensors; no GPU is needed.
"""

import operator
from pathlib import Path

import pytest
import torch
import transformers
from torch.fx import Node

from pllm.build.checkpoint import Checkpoint
from pllm.build.export import paged_attention, trace
from pllm.build.model_source import skeleton
from pllm.build.passes import CUDA_PASSES, apply_cuda_passes
from pllm.build.passes.drop_assertions import drop_assertions
from pllm.build.passes.drop_casts import drop_casts
from pllm.build.passes.fuse_cache_writes import fuse_cache_writes
from pllm.build.passes.fuse_norms import fuse_norms
from pllm.build.passes.fuse_silu import fuse_silu
from pllm.build.passes.merge_linears import merge_linears
from pllm.build.passes.small_products import small_products
from pllm.build.passes.step_shape import StepShape
from pllm.build.traced import Traced
from pllm.kernels.registry import OPERATORS
from pllm.runtime.manifest import KvInfo

from .graphs import BLOCK_SIZE, FAMILIES, SIZES, PagedModel, checkpoint_of, traced_of

aten, pllm = torch.ops.aten, torch.ops.pllm
LAYERS = SIZES["num_hidden_layers"]
SEQUENCES = {0: [5, 9, 40, 71, 8], 1: list(range(20, 45))}
SMALL = StepShape(max_rows=8, max_sequences=8, decodes=True)
LARGE = StepShape(max_rows=256, max_sequences=256, decodes=True)
MIXED = StepShape(max_rows=2048, max_sequences=256, decodes=False)


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Checkpoint]:
    return {family: checkpoint_of(family, tmp_path_factory.mktemp(family)) for family in ("qwen2", "qwen3")}


@pytest.fixture(params=["qwen2", "qwen3"])
def checkpoint(request: pytest.FixtureRequest, checkpoints: dict[str, Checkpoint]) -> Checkpoint:
    """qwen3 has norms of heads; qwen2 has none, and its query, key and value have biases."""
    return checkpoints[request.param]


def count(traced: Traced, *targets: torch._ops.OpOverload) -> int:
    return sum(len(traced.calls(target)) for target in targets)


def logits(checkpoint: Checkpoint, step: StepShape, *passes) -> tuple[Traced, torch.Tensor]:
    traced, kv = traced_of(checkpoint)
    for run in (drop_assertions, *passes):
        run(traced, step)
        traced.drop_unused()
    model = PagedModel(traced, kv, checkpoint)
    first = model.step(SEQUENCES)
    return traced, torch.cat([first, model.step({0: [3], 1: [4]})])


def same(actual: torch.Tensor, expected: torch.Tensor) -> None:
    torch.testing.assert_close(actual, expected, atol=2e-5, rtol=0)


def test_drop_casts(checkpoint: Checkpoint) -> None:
    before, expected = logits(checkpoint, LARGE)
    after, actual = logits(checkpoint, LARGE, drop_casts)
    assert count(before, aten.to.dtype, aten.to.device) > 8
    assert count(after, aten.to.dtype, aten.to.device) == 1  # positions to floats
    assert torch.equal(actual, expected)


def test_fuse_norms(checkpoint: Checkpoint) -> None:
    before, expected = logits(checkpoint, LARGE, drop_casts)
    after, actual = logits(checkpoint, LARGE, drop_casts, fuse_norms)
    heads = count(before, aten.rsqrt.default) - (2 * LAYERS + 1)
    assert count(after, aten.rsqrt.default) == heads  # of queries and keys, where the model has them
    assert count(after, pllm.rms_normalize.default) == 1  # the first, of the embedding
    assert count(after, pllm.add_rms_norm.default) == 2 * LAYERS
    assert count(before, aten.add.Tensor) - count(after, aten.add.Tensor) == 2 * (2 * LAYERS) + 1  # sums and eps
    same(actual, expected)


def test_fuse_norms_with_few_rows_leaves_the_sums_to_the_products(checkpoint: Checkpoint) -> None:
    _, expected = logits(checkpoint, SMALL, drop_casts)
    after, actual = logits(checkpoint, SMALL, drop_casts, fuse_norms)
    assert count(after, pllm.rms_normalize.default) == 2 * LAYERS + 1
    assert count(after, pllm.add_rms_norm.default) == 0
    same(actual, expected)


def test_fuse_silu(checkpoint: Checkpoint) -> None:
    before, expected = logits(checkpoint, LARGE, merge_linears)
    after, actual = logits(checkpoint, LARGE, merge_linears, fuse_silu)
    assert count(before, aten.silu.default) == LAYERS
    assert count(after, aten.silu.default) == 0
    assert count(after, pllm.silu_mul.default) == LAYERS
    same(actual, expected)


def test_fuse_cache_writes(checkpoint: Checkpoint) -> None:
    before, expected = logits(checkpoint, MIXED, drop_casts)
    after, actual = logits(checkpoint, MIXED, drop_casts, fuse_cache_writes)
    assert count(before, pllm.paged_attention.default) == LAYERS
    assert count(after, pllm.paged_attention.default, aten.neg.default) == 0
    assert count(after, pllm.token_slots.default) == 1
    assert count(after, pllm.norm_rope_write.default) == count(after, pllm.cached_attention.default) == LAYERS
    has_head_norms = count(before, aten.rsqrt.default) > 2 * LAYERS + 1
    for call in after.calls(pllm.norm_rope_write.default):
        assert (call.args[5] is not None) == has_head_norms
        assert call.args[3] is not None
    assert count(after, aten.rsqrt.default) == 2 * LAYERS + 1
    same(actual, expected)


def test_small_products(checkpoint: Checkpoint) -> None:
    passes = (drop_casts, merge_linears, fuse_norms, fuse_silu)
    before, expected = logits(checkpoint, SMALL, *passes)
    after, actual = logits(checkpoint, SMALL, *passes, small_products)
    assert count(before, aten.linear.default) == 4 * LAYERS + 1
    assert count(after, aten.linear.default) == 1  # the head
    products = after.calls(pllm.small_linear.default)
    assert len(products) == 4 * LAYERS
    assert sum(call.args[3] is not None for call in products) == 2 * LAYERS  # norms
    assert sum(call.args[4] is not None for call in products) == 2 * LAYERS  # residuals
    assert sum(bool(call.args[7]) for call in products) == LAYERS  # SiLU·mul
    assert count(after, pllm.rms_normalize.default) == 1  # the last, before the head
    same(actual, expected)


def test_small_products_leaves_larger_steps_alone(checkpoint: Checkpoint) -> None:
    traced, _ = traced_of(checkpoint)
    assert small_products(traced, LARGE) == "left to the library"
    assert count(traced, pllm.small_linear.default) == 0


@pytest.mark.parametrize("step", [SMALL, pytest.param(MIXED, marks=pytest.mark.nightly)], ids=["small", "mixed"])
@pytest.mark.parametrize("family", FAMILIES)
def test_all_passes_leave_what_every_family_computes(family: str, step: StepShape, tmp_path: Path) -> None:
    """What a pass does not know it must leave alone: other norms, other rotations, experts, soft caps, multipliers."""
    checkpoint = checkpoint_of(family, tmp_path)
    _, expected = logits(checkpoint, step)
    after, actual = logits(checkpoint, step, *CUDA_PASSES)
    assert count(after, pllm.paged_attention.default) == 0
    torch.testing.assert_close(actual, expected, atol=5e-5, rtol=0)


def qwen3_graph(num_layers: int, step: StepShape, dtype: torch.dtype) -> Traced:
    config = transformers.Qwen3Config(**{**SIZES, "num_hidden_layers": num_layers})
    kv = KvInfo(
        dtype=str(dtype).removeprefix("torch."), num_layers=num_layers, num_kv_heads=2, block_size=BLOCK_SIZE,
        head_dim=16,
    )  # fmt: skip
    traced = trace(skeleton(config, paged_attention, dtype), kv)
    apply_cuda_passes(traced, step)
    return traced


VIEWS = frozenset((
    operator.getitem, aten.slice.Tensor, aten.view.default, aten.reshape.default, aten.squeeze.dim,
    aten.unsqueeze.default, aten.transpose.int, aten.sym_size.int,
))  # fmt: skip


def kernels(traced: Traced) -> list[str]:
    """What is launched: our operators, one kernel each in a step that decodes, and products of the library."""
    nodes: list[Node] = [node for node in traced.graph.nodes if node.op == "call_function" and node.target not in VIEWS]
    return [str(node.target) for node in nodes]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize(("step", "most"), [(SMALL, 6), (LARGE, 9)], ids=["8 rows", "256 rows"])
def test_the_kernels_of_a_layer(step: StepShape, most: int, dtype: torch.dtype) -> None:
    """A third layer adds no more than this, and nothing that is not a kernel of ours or a product."""
    two, three = (kernels(qwen3_graph(layers, step, dtype)) for layers in (2, 3))
    assert len(three) - len(two) == most
    ours = {f"pllm.{name}.default" for name, each in OPERATORS.items() if "cuda" in each.implementations}
    added = list(three)
    for name in two:
        added.remove(name)
    assert set(added) <= ours | {"aten.linear.default"}
    assert not any(left in name for name in three for left in ("rsqrt", "neg", "silu.", "aten.pow"))


def test_every_pass_is_done_the_first_time(checkpoint: Checkpoint) -> None:
    traced, _ = traced_of(checkpoint)
    said = apply_cuda_passes(traced, SMALL)
    assert [line.partition(":")[0] for line in said] == [run.__name__ for run in CUDA_PASSES]
    nodes = len(traced.graph.nodes)
    apply_cuda_passes(traced, SMALL)
    assert len(traced.graph.nodes) == nodes

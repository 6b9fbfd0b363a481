"""The operators on CUDA as torch sees them: kept by export, dissolved into launches by what compiles, without a GPU."""

import functools
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import triton
from torch._functorch.aot_autograd import aot_export_module
from torch._higher_order_ops.triton_kernel_wrap import (
    kernel_side_table,
    triton_kernel_wrapper_functional,
    triton_kernel_wrapper_mutation,
)
from torch._inductor.fx_passes.post_grad import post_grad_passes
from torch._inductor.virtualized import V
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.export import Dim, ExportedProgram
from torch.fx import Graph
from triton.backends.compiler import GPUTarget

from pllm.kernels import reference
from pllm.kernels.cuda.configurations import Configurations
from pllm.kernels.cuda.launches import launches
from pllm.kernels.cuda.operators import CudaOperators, register
from pllm.kernels.registry import OPERATORS
from pllm.kernels.torch_operators import define_operators

HEADS, KV_HEADS, HEAD_DIM, HIDDEN, INNER, BLOCK_SIZE = 16, 8, 128, 1024, 3072, 16
OPERATORS_90 = CudaOperators(Configurations.shipped((9, 0)), max_sequences=64)
ops = torch.ops.pllm


class Hopper:
    """A stand-in for Triton's driver, which only says what device there is: torch asks it which arguments a kernel
    writes to, and takes all of them for written where there is none."""

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", 90, 32)

    def get_current_device(self) -> int:
        return 0

    def get_active_torch_device(self) -> torch.device:
        return torch.device("cuda", 0)


@pytest.fixture
def registered(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(triton.runtime.driver, "_active", Hopper())
    library = register(OPERATORS_90)
    yield
    library._destroy()


def fake(*shape: int, dtype: torch.dtype = torch.bfloat16) -> torch.Tensor:
    return torch.empty(shape, dtype=dtype, device="cuda")


def int32(*shape: int) -> torch.Tensor:
    return fake(*shape, dtype=torch.int32)


class Layer(torch.nn.Module):
    """A decoder layer's work as a graph for CUDA has it, small products or the library's."""

    def __init__(self, max_rows: int | None) -> None:
        super().__init__()
        self.max_rows = max_rows

    def product(
        self, x: torch.Tensor, weight: torch.Tensor, norm: torch.Tensor | None, residual: torch.Tensor | None,
        gated: bool = False,
    ) -> torch.Tensor:  # fmt: skip
        assert self.max_rows is not None
        return ops.small_linear(x, weight, None, norm, residual, 1e-6, 0.0, gated, self.max_rows)

    def forward(
        self, x: torch.Tensor, kv: torch.Tensor, table: torch.Tensor, starts: torch.Tensor, contexts: torch.Tensor,
        slots: torch.Tensor, angles: torch.Tensor, head_norm: torch.Tensor, norm: torch.Tensor, qkv_w: torch.Tensor,
        o_w: torch.Tensor, gate_up_w: torch.Tensor, down_w: torch.Tensor,
    ) -> tuple[torch.Tensor, ...]:  # fmt: skip
        linear = torch.nn.functional.linear
        total = x
        if self.max_rows:
            qkv = self.product(x, qkv_w, norm, None)
        else:
            normed, total = ops.add_rms_norm(x, x, norm, 1e-6, 0.0)
            qkv = linear(normed, qkv_w)
        q, k, v = qkv.unflatten(1, (-1, HEAD_DIM)).split((HEADS, KV_HEADS, KV_HEADS), dim=1)
        q, arrivals = ops.norm_rope_write(
            q, k, v, angles, angles, head_norm, head_norm, kv, slots, 1, 1e-6, 0.0, False, 1.0, 1.0
        )
        attended = ops.cached_attention(
            q, kv, table, starts, contexts, None, arrivals, 1, 0.1, 0, 0.0, 1.0, 1.0, 8, True
        ).flatten(1)
        if self.max_rows:
            total = self.product(attended, o_w, None, total)
            return (self.product(self.product(total, gate_up_w, norm, None, gated=True), down_w, None, total),)
        normed, total = ops.add_rms_norm(linear(attended, o_w), total, norm, 1e-6, 0.0)
        return linear(ops.silu_mul(linear(normed, gate_up_w)), down_w), total


def layer_inputs(rows: int) -> tuple[torch.Tensor, ...]:
    return (
        fake(rows, HIDDEN), fake(40, 2, 2, KV_HEADS, BLOCK_SIZE, HEAD_DIM), int32(rows, 5), int32(rows + 1),
        int32(rows), int32(rows), fake(rows, HEAD_DIM // 2), fake(HEAD_DIM), fake(HIDDEN),
        fake((HEADS + 2 * KV_HEADS) * HEAD_DIM, HIDDEN), fake(HIDDEN, HEADS * HEAD_DIM), fake(2 * INNER, HIDDEN),
        fake(HIDDEN, INNER),
    )  # fmt: skip


def exported(max_rows: int | None, most: int) -> ExportedProgram:
    batch, boundaries = Dim("batch", min=1, max=most), Dim("boundaries", min=2, max=most + 1)
    dims: list[dict[int, Any] | None] = [None] * 13
    dims[0] = dims[4] = dims[5] = dims[6] = {0: batch}
    dims[1], dims[2], dims[3] = {0: Dim("blocks")}, {0: batch, 1: Dim("width")}, {0: boundaries}
    with FakeTensorMode():
        inputs = layer_inputs(4)
    return torch.export.export(Layer(max_rows), inputs, dynamic_shapes=tuple(dims), strict=False)


def functional(program: ExportedProgram) -> Graph:
    """What AOTAutograd makes of it for Inductor: no operators of ours; at the end, the pool is copied to its input."""
    values = [node.meta["val"] for node in program.graph.nodes if node.op == "placeholder"]
    module, signature = aot_export_module(program.module(), values, trace_joint=False)
    graph: Graph = module.graph
    inputs = {node.name: node for node in graph.nodes if node.op == "placeholder"}
    output = next(node for node in graph.nodes if node.op == "output")
    changed = {
        node: inputs[signature.user_inputs_to_mutate[node.name]]
        for node in output.args[0]
        if node.name in signature.user_inputs_to_mutate
    }
    # aot_export_module gives the changed input out; a compiled program changes it, which no GPU-less torch can trace.
    for node, target in changed.items():
        with graph.inserting_before(output):
            graph.call_function(torch.ops.aten.copy_.default, (target, node)).meta["val"] = target.meta["val"]
    output.args = (tuple(node for node in output.args[0] if node not in changed),)
    module.recompile()
    return graph


@pytest.mark.parametrize(("max_rows", "most", "kernels"), [(8, 8, 6), (1, 1, 6), (None, 256, 9)])
def test_a_layer_is_as_few_kernels_as_it_may_be(
    registered: None, max_rows: int | None, most: int, kernels: int
) -> None:
    """By the graph that Inductor gets: launches, and products of the library."""
    program = exported(max_rows, max(most, 4))
    names = [str(node.target) for node in program.graph.nodes if "pllm" in str(node.target)]
    assert names.count("pllm.small_linear.default") == (4 if max_rows else 0)
    graph = functional(program)
    nodes = [node for node in graph.nodes if node.op == "call_function"]
    assert not any("pllm" in str(node.target) for node in nodes)
    calls = [node for node in nodes if node.target is triton_kernel_wrapper_functional]
    products = [node for node in nodes if node.target in (torch.ops.aten.mm.default, torch.ops.aten.addmm.default)]
    assert len(calls) + len(products) == kernels
    # What a launch writes to is what Inductor would have to copy, were it read afterwards as it was.
    written = {kernel_side_table.get_kernel(node.kwargs["kernel_idx"]).fn.__name__: node for node in calls}
    assert set(written["norm_rope_write_kernel"].kwargs["tensors_to_clone"]) == {"kv", "q_out", "arrivals"}
    mine = {"arrivals", "partials", "statistics", "out"}
    assert set(written["decode_attention_kernel"].kwargs["tensors_to_clone"]) == mine


class Attention(torch.nn.Module):
    def forward(
        self, q: torch.Tensor, k: torch.Tensor, kv: torch.Tensor, table: torch.Tensor, starts: torch.Tensor,
        contexts: torch.Tensor,
    ) -> tuple[torch.Tensor]:  # fmt: skip
        return (ops.paged_attention(q, k, k, kv, table, starts, contexts, None, 0, 0.25, 0, 0.0),)


def attention(device: str) -> ExportedProgram:
    """The operator as transformers' attention is traced to, before any pass."""
    with FakeTensorMode():
        shapes = ((1, 4, 3, 16), (1, 2, 3, 16), (4, 1, 2, 2, 16, 16))
        q, k, pool = (torch.empty(shape, device=device) for shape in shapes)
        inputs = [torch.empty(shape, dtype=torch.int32, device=device) for shape in ((1, 1), (2,), (1,))]
    return torch.export.export(Attention(), (q, k, pool, *inputs), strict=False)


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_what_a_cpu_runs_stays_whole(registered: None, device: str) -> None:
    targets = [node.target for node in functional(attention(device)).nodes]
    assert targets.count(triton_kernel_wrapper_functional) == (0 if device == "cpu" else 4)
    assert targets.count(torch.ops.higher_order.auto_functionalized_v2) == (1 if device == "cpu" else 0)


def call_arguments(name: str) -> tuple[Any, ...]:
    """Arguments of each operator with an implementation on CUDA, on no device."""
    rows, vocabulary = 4, 500
    q, k = fake(rows, HEADS, HEAD_DIM), fake(rows, KV_HEADS, HEAD_DIM)
    kv = fake(40, 2, 2, KV_HEADS, BLOCK_SIZE, HEAD_DIM)
    sequences = (int32(rows, 5), int32(rows + 1), int32(rows))
    x, weight, numbers = fake(rows, HIDDEN), fake(HIDDEN), fake(rows, dtype=torch.float32)
    whole, history = fake(rows, dtype=torch.int64), int32(2, vocabulary)
    logits = fake(rows, vocabulary, dtype=torch.float32)
    angles, head_norm = fake(rows, HEAD_DIM // 2), fake(HEAD_DIM)
    arguments: dict[str, tuple[Any, ...]] = {
        "paged_attention": (
            q.transpose(0, 1).unsqueeze(0), *[k.transpose(0, 1).unsqueeze(0)] * 2, kv, *sequences, None, 1, 0.1, 0, 0.0
        ),
        "token_slots": (*sequences, rows, BLOCK_SIZE, 8),
        "norm_rope_write": (
            q, k, k, angles, angles, head_norm, head_norm, kv, int32(rows), 1, 1e-6, 0.0, False, 1.0, 1.0
        ),
        "cached_attention": (
            q, kv, *sequences, None, int32(rows, KV_HEADS), 1, 0.1, 0, 0.0, 1.0, 1.0, 8, False
        ),
        "add_rms_norm": (x, x, weight, 1e-6, 0.0),
        "rms_normalize": (x, weight, 1e-6, 0.0),
        "silu_mul": (x,),
        "small_linear": (x, fake(96, HIDDEN), None, weight, None, 1e-6, 0.0, True, 8),
        "sample_tokens": (logits, numbers, int32(rows), numbers, numbers, whole, whole),
        "penalize": (logits, history, int32(rows), numbers, numbers, numbers),
        "record": (history, int32(rows), whole, 8),
    }  # fmt: skip
    return arguments[name]


class Call(torch.nn.Module):
    """An operator alone, over its tensors."""

    def __init__(self, name: str, arguments: tuple[Any, ...]) -> None:
        super().__init__()
        self.operator = getattr(ops, name)
        self.arguments = [None if isinstance(argument, torch.Tensor) else argument for argument in arguments]
        self.places = [i for i, argument in enumerate(arguments) if isinstance(argument, torch.Tensor)]

    def forward(self, *tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
        arguments = list(self.arguments)
        for place, tensor in zip(self.places, tensors, strict=True):
            arguments[place] = tensor
        result = self.operator(*arguments)
        return () if result is None else (result,) if isinstance(result, torch.Tensor) else tuple(result)


def alone(name: str) -> ExportedProgram:
    with FakeTensorMode():
        arguments = call_arguments(name)
    tensors = tuple(argument for argument in arguments if isinstance(argument, torch.Tensor))
    return torch.export.export(Call(name, arguments), tensors, strict=False)


NAMES = [name for name, operator in OPERATORS.items() if "cuda" in operator.implementations]
PROGRAMS: dict[str, Callable[[], ExportedProgram]] = {
    "a layer with small products": lambda: exported(8, 8),
    "a layer with the library's": lambda: exported(None, 256),
    **{name: functools.partial(alone, name) for name in NAMES},
}


@pytest.mark.parametrize("program", PROGRAMS.values(), ids=PROGRAMS)
def test_inductor_copies_nothing(registered: None, program: Callable[[], ExportedProgram]) -> None:
    """Every launch writes in place, into the pool too: no copy of it is made."""
    graph = functional(program())
    launched = sum(node.target is triton_kernel_wrapper_functional for node in graph.nodes)
    with V.set_fake_mode(next(iter(graph.nodes)).meta["val"].fake_mode):
        post_grad_passes(graph.owning_module, is_inference=True)
    targets = [node.target for node in graph.nodes]
    assert targets.count(triton_kernel_wrapper_mutation) == launched
    assert torch.ops.aten.clone.default not in targets
    assert torch.ops.aten.copy_.default not in targets


@pytest.mark.parametrize("name", NAMES)
def test_what_an_operator_gives_is_what_torch_was_told(name: str) -> None:
    define_operators()
    method: Callable[..., Any] = getattr(OPERATORS_90, OPERATORS[name].implementations["cuda"])
    with FakeTensorMode():
        arguments = call_arguments(name)
        told = getattr(torch.ops.pllm, name)(*arguments)
        given: list[Any] = []
        assert launches(lambda *inputs: given.append(method(*inputs)), *arguments)

    def shapes(result: Any) -> list[tuple[Any, ...]]:
        results = [] if result is None else [result] if isinstance(result, torch.Tensor) else result
        return [(tuple(x.shape), x.dtype, x.device.type, x.is_contiguous()) for x in results]

    assert shapes(given[0]) == shapes(told)


def test_the_specifications_answer_to_the_operators_names() -> None:
    """On CPU tensors, by the operators' own arguments."""
    define_operators()
    g = torch.Generator().manual_seed(0)
    table, starts = torch.tensor([[2], [1]], dtype=torch.int32), torch.tensor([0, 1, 3], dtype=torch.int32)
    contexts = torch.tensor([4, 2], dtype=torch.int32)
    slots = ops.token_slots(table, starts, contexts, 4, 8, 2)
    assert slots.tolist() == [19, 8, 9, -1]
    q, k = torch.randn(4, 2, 16, generator=g), torch.randn(4, 1, 16, generator=g)
    pool = torch.randn(3, 1, 2, 1, 8, 16, generator=g)
    turned, arrivals = ops.norm_rope_write(q, k, k, None, None, None, None, pool, slots, 0, 0.0, 0.0, False, 1.0, 1.0)
    assert torch.equal(turned, q)
    assert arrivals.tolist() == [[0]] * 4
    assert torch.equal(pool[2, 0, 0, 0, 3], k[0, 0])
    assert torch.equal(pool[1, 0, 1, 0, :2], k[1:3, 0])
    inputs = (table, starts, contexts, None)
    got = ops.cached_attention(q, pool, *inputs, arrivals, 0, 0.25, 0, 0.0, 1.0, 1.0, 2, False)
    assert torch.equal(got, reference.cached_attention(q, pool, *inputs, 0, 0.25, 0, 0.0, 1.0, 1.0))
    x, weight = torch.randn(3, 8, generator=g), torch.randn(6, 8, generator=g)
    assert ops.small_linear(x, weight, None, None, None, 0.0, 0.0, True, 8).shape == (3, 3)
    history = torch.zeros((1, 5), dtype=torch.int32)
    ops.record(history, torch.tensor([0, -1], dtype=torch.int32), torch.tensor([3, 3]), 8)
    assert history.tolist() == [[0, 0, 0, 2, 0]]


def test_an_old_device_is_refused() -> None:
    with pytest.raises(ValueError, match="below what the kernels need"):
        Configurations.shipped((7, 5))
    assert Configurations.shipped((8, 9)).device_name == "sm_80"
    assert Configurations.shipped((12, 0)).device_name == "sm_100"

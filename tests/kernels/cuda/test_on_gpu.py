"""The kernels on a device, with the configurations shipped for it, against float64: `pytest -m gpu`.

Fresh random inputs, outputs poisoned before. The operators are called as a program calls them.
"""

import time
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from pllm.kernels import reference
from pllm.kernels.cuda.configurations import Configurations
from pllm.kernels.cuda.decode_attention import decode_attention
from pllm.kernels.cuda.operators import CudaOperators, register
from pllm.kernels.cuda.prefill_attention import prefill_attention

from .interpreted.cases import BYTES, Step, relative_error

pytestmark = pytest.mark.gpu

BFLOAT16_BOUND = 8e-3
"""Of |out - reference| / |reference|: operands of 8 bits of mantissa, sums in float32."""


@pytest.fixture(scope="module")
def operators() -> Iterator[CudaOperators]:
    """For this device, and registered with torch."""
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    operators = CudaOperators(Configurations.shipped(torch.cuda.get_device_capability()))
    library = register(operators)
    yield operators
    library._destroy()


def fresh(offset: int = 0) -> torch.Generator:
    """Another seed every run, which a failure prints."""
    seed = time.time_ns() % 2**31 + offset
    print("seed", seed)
    return torch.Generator().manual_seed(seed)


def attend(operators: CudaOperators, step: Step, *, max_sequences: int = 256) -> torch.Tensor:
    """Both kernels, into one poisoned output, as `cached_attention` runs them."""
    here = step.to("cuda")
    out = torch.full(step.q.shape, torch.nan, dtype=step.q.dtype, device="cuda")
    arrivals = torch.zeros((len(step.q), step.kv.shape[3]), dtype=torch.int32, device="cuda")
    shape = (step.q.shape[2], step.q.shape[1] // step.kv.shape[3])
    inputs = (here.q, here.kv, here.block_table, here.query_start, here.context_len, here.sinks)
    rest: dict[str, Any] = {
        "layer": step.layer, "scale": step.scale, "sliding_window": step.sliding_window, "softcap": step.softcap,
        "k_scale": step.k_scale, "v_scale": step.v_scale, "max_sequences": max_sequences,
    }  # fmt: skip
    configurations = operators.configurations
    decode_attention(*inputs, arrivals, out, **rest, configuration=configurations.for_decode(*shape))
    prefill_attention(*inputs, out, **rest, least_tokens=2, configuration=configurations.for_prefill(*shape))
    return out.cpu()


OPTIONS: list[dict[str, Any]] = [
    {},
    {"heads": 32},
    {"heads": 8, "kv_heads": 1, "head_dim": 64},
    {"heads": 28, "kv_heads": 4},
    {"heads": 32, "kv_heads": 8, "head_dim": 96, "block_size": 32},
    {"heads": 8, "kv_heads": 4, "head_dim": 256, "softcap": 50.0, "sliding_window": 1000},
    {"heads": 64, "kv_heads": 8, "head_dim": 64, "sinks": True, "sliding_window": 128},
    {"block_size": 64},
    {"block_size": 128, "dtype": torch.float16},
    {"dtype": torch.float16, "kv_dtype": torch.uint8},
    {"kv_dtype": torch.uint8, "block_size": 64},
    {"kv_dtype": torch.float8_e4m3fn},
    {"kv_dtype": torch.float8_e4m3fn, "head_dim": 64, "block_size": 64},
]
LENGTHS = [
    [(1, context) for context in (1, 2, 15, 16, 17, 63, 64, 65, 127, 128, 129, 1000, 3001)],
    [(0, 0), (1, 1), (500, 500), (1, 777), (0, 30), (3, 1200), (64, 64), (65, 129), (2, 2), (1, 64), (129, 2500)],
    [(1, 5000)],
    [(1, 200 + 7 * i) for i in range(200)],
]


@pytest.mark.parametrize("lengths", LENGTHS, ids=["edges", "mixed", "long", "many"])
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_attention(operators: CudaOperators, options: dict[str, Any], lengths: list[tuple[int, int]]) -> None:
    native = operators.configurations.device.native_fp8
    if options.get("kv_dtype") == torch.float8_e4m3fn and not native:
        pytest.skip("this device has no e4m3: its pools are bytes")
    settings = {"heads": 16, "kv_heads": 8, "head_dim": 128, "dtype": torch.bfloat16} | options
    step = Step.random(fresh(), lengths, **settings)
    out = attend(operators, step)
    rows = int(step.query_start[-1])
    assert torch.isnan(out[rows:]).all(), "rows of no sequence were written"
    assert relative_error(out[:rows], step.expected()[:rows]) < BFLOAT16_BOUND
    # The worst row too: a wrong one would drown among hundreds.
    worst = max(relative_error(got, wanted) for got, wanted in zip(out[:rows], step.expected()[:rows], strict=True))
    assert worst < 8 * BFLOAT16_BOUND


def test_the_reduction_has_no_race(operators: CudaOperators) -> None:
    """Shares end in other orders every time; the bits must not."""
    step = Step.random(
        fresh(), [(1, 6000), (1, 40), (1, 3000)], heads=16, kv_heads=8, head_dim=128, dtype=torch.bfloat16
    )
    first = attend(operators, step)
    for _ in range(200):
        assert torch.equal(attend(operators, step)[:3], first[:3])


def test_a_graph_replays_what_runs_eagerly(operators: CudaOperators) -> None:
    """Captured once, replayed for other lengths and blocks, and for fewer sequences than it was captured for."""
    options: dict[str, Any] = {"heads": 16, "kv_heads": 8, "head_dim": 128, "dtype": torch.bfloat16}
    g = fresh()
    steps = [Step.random(g, [(1, 300 * (i + 1)), (1, 17), (1, 900), (1, 64)], **options).to("cuda") for i in range(3)]
    steps.append(Step.random(g, [(1, 450), (1, 1100), (0, 0), (0, 0)], padding=4, **options).to("cuda"))
    width = max(step.block_table.shape[1] for step in steps)
    blocks = max(len(step.kv) for step in steps)
    kv = torch.empty((blocks, *steps[0].kv.shape[1:]), dtype=torch.bfloat16, device="cuda")
    table = torch.zeros((4, width), dtype=torch.int32, device="cuda")
    starts, contexts = (torch.zeros(n, dtype=torch.int32, device="cuda") for n in (5, 4))
    qkv = torch.zeros((6, 32, 128), dtype=torch.bfloat16, device="cuda")
    q, k, v = qkv.split((16, 8, 8), dim=1)
    weight = torch.ones(128, dtype=torch.bfloat16, device="cuda")

    def run() -> torch.Tensor:
        slots = operators.token_slots(table, starts, contexts, 6, 16, 4)
        turned, arrivals = operators.norm_rope_write(
            q, k, v, None, None, weight, weight, kv, slots, 0, 1e-6, 0.0, False, 1.0, 1.0
        )
        return operators.cached_attention(
            turned, kv, table, starts, contexts, None, arrivals, 0, 0.1, 0, 0.0, 1.0, 1.0, 4, True
        )

    def load(step: Step) -> int:
        kv[: len(step.kv)] = step.kv.nan_to_num()
        table.zero_()[:, : step.block_table.shape[1]] = step.block_table.clamp(min=0)
        starts.copy_(step.query_start)
        contexts.copy_(step.context_len)
        qkv[: len(step.q)].normal_()
        return int(step.query_start[-1])

    load(steps[0])
    run()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = run()
    for step in steps:
        rows = load(step)
        eager = run()[:rows].clone()
        out.fill_(torch.nan)
        graph.replay()
        assert torch.equal(out[:rows], eager)
        assert torch.isnan(out[rows:]).all()


@pytest.mark.parametrize("kv_dtype", [torch.bfloat16, torch.uint8, torch.float8_e4m3fn], ids=str)
@pytest.mark.parametrize(("head_dim", "rotary", "interleaved"), [(128, 128, False), (64, 64, False), (256, 128, True)])
def test_norm_rope_write(
    operators: CudaOperators, kv_dtype: torch.dtype, head_dim: int, rotary: int, interleaved: bool
) -> None:
    if kv_dtype == torch.float8_e4m3fn and not operators.configurations.device.native_fp8:
        pytest.skip("this device has no e4m3: its pools are bytes")
    g, tokens, heads, kv_heads, block_size, blocks = fresh(), 150, 14, 2, 16, 12
    merged = torch.randn((tokens, heads + 2 * kv_heads, head_dim), generator=g).bfloat16()
    q, k, v = merged.split((heads, kv_heads, kv_heads), dim=1)
    angles = 100 * torch.rand((tokens, rotary // 2), generator=g)
    weights = [torch.rand(head_dim, generator=g).bfloat16() for _ in range(2)]
    slots = torch.randperm(blocks * block_size, generator=g, dtype=torch.int32)[:tokens]
    slots[-9:] = -1
    pool = torch.full((blocks, 2, 2, kv_heads, block_size, head_dim), 1, dtype=torch.uint8)
    pool = pool.view(kv_dtype) if kv_dtype in BYTES else pool.to(kv_dtype)
    scale = 0.25 if kv_dtype in BYTES else 1.0
    rest = (1, 1e-6, 0.0, interleaved, scale, scale)
    moved = pool.cuda()
    here = [x.cuda() for x in (merged, angles.cos(), angles.sin(), *weights)]
    parts = here[0].split((heads, kv_heads, kv_heads), dim=1)
    out, arrivals = operators.norm_rope_write(*parts, *here[1:], moved, slots.cuda(), *rest)
    wide = (x.double() for x in (q, k, v, angles.cos(), angles.sin(), *weights))
    expected, _ = reference.norm_rope_write(*wide, pool, slots, *rest)
    assert relative_error(out[:-9].cpu(), expected[:-9]) < 4e-3
    assert (arrivals[:-9] == 0).all()
    got, wanted = (reference.cached(x.cpu(), torch.float64) for x in (moved, pool))
    assert relative_error(got, wanted) < (1e-3 if kv_dtype in BYTES else 4e-3)  # codes rounded the other way at a tie
    assert torch.equal(moved[:, 0].cpu().view(torch.uint8), pool[:, 0].view(torch.uint8))


@pytest.mark.parametrize(("max_rows", "rows"), [(1, 1), (8, 2), (8, 3), (8, 8)])
@pytest.mark.parametrize(("n", "k"), [(4096, 1024), (1024, 2048), (1000, 896), (4096, 12288)])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("fused", [False, True])
def test_small_linear(
    operators: CudaOperators, max_rows: int, rows: int, n: int, k: int, dtype: torch.dtype, fused: bool
) -> None:
    g = fresh(n)
    x, weight = torch.randn((rows, k), generator=g).to(dtype), torch.randn((2 * n, k), generator=g).to(dtype) / k**0.5
    norm, residual = torch.rand(k, generator=g).to(dtype), torch.randn((rows, n), generator=g).to(dtype)
    bias = torch.randn(2 * n, generator=g).to(dtype)
    if not fused:
        weight, bias, norm = weight[:n], bias[:n], None
    inputs = [x, weight, bias, norm, residual]
    here = [None if tensor is None else tensor.cuda() for tensor in inputs]
    out = operators.small_linear(*here, 1e-6, 0.0, fused, max_rows)
    wide = [None if tensor is None else tensor.double() for tensor in inputs]
    assert relative_error(out.cpu(), reference.small_linear(*wide, 1e-6, 0.0, fused)) < BFLOAT16_BOUND


@pytest.mark.parametrize("size", [896, 1024, 4096, 5120, 8192])
def test_pointwise(operators: CudaOperators, size: int) -> None:
    g, rows = fresh(size), 37
    x, residual = (torch.randn((rows, size), generator=g).bfloat16() for _ in range(2))
    weight = torch.rand(size, generator=g).bfloat16()
    out, total = operators.add_rms_norm(x.cuda(), residual.cuda(), weight.cuda(), 1e-6, 1.0)
    expected, sums = reference.add_rms_norm(x.double(), residual.double(), weight.double(), 1e-6, 1.0)
    assert relative_error(out.cpu(), expected) < 4e-3
    assert relative_error(total.cpu(), sums) < 4e-3
    gated = operators.silu_mul(torch.cat((x, residual), 1).cuda())
    assert relative_error(gated.cpu(), reference.silu_mul(torch.cat((x, residual), 1).double())) < 4e-3


FILTERS = [
    (1.0, 0, 1.0, 0.0), (0.0, 0, 1.0, 0.0), (0.6, 20, 0.95, 0.0), (0.7, 50, 1.0, 0.0), (1.0, 0, 0.9, 0.0),
    (1.0, 0, 1.0, 0.05), (1.2, 1000, 0.95, 0.0), (1.0, 0, 0.5, 0.01),
]  # fmt: skip


@pytest.mark.parametrize("spread", [0.5, 2.0, 5.0])
@pytest.mark.parametrize("size", [32000, 151936])
def test_the_sampler(operators: CudaOperators, size: int, spread: float) -> None:
    """The device's exp and log differ in the last bits: a token may differ where the best two scores nearly tie, or
    where it stands at the edge of a filter. Such rows are few."""
    g, rows = fresh(size), 16 * len(FILTERS)
    logits = spread * torch.randn((rows, size), generator=g)
    columns = [torch.tensor(column * 16) for column in zip(*FILTERS, strict=True)]
    seeds = torch.randint(-(2**62), 2**62, (rows,), generator=g)
    positions = torch.arange(rows)
    dtypes = (torch.float32, torch.int32, torch.float32, torch.float32)
    inputs = [logits, *(column.to(dtype) for column, dtype in zip(columns, dtypes, strict=True)), seeds, positions]
    tokens = operators.sample_tokens(*(tensor.cuda() for tensor in inputs)).cpu()
    differing = torch.nonzero(tokens != reference.sample_tokens(*inputs)).flatten().tolist()
    assert len(differing) <= max(1, rows // 50)
    for row in differing:
        t, k, p, m = (float(column[row]) for column in columns)
        edges = reference.filtered_probabilities(logits[row], t, int(k), min(1.0, p * (1 + 1e-4)), m * (1 - 1e-4))
        scores = torch.log(edges) + reference.gumbel_noise(int(seeds[row]), int(positions[row]), size)
        assert scores[tokens[row]] > scores.max() - 1e-3 or edges.count_nonzero() != (
            reference.filtered_probabilities(logits[row], t, int(k), p * (1 - 1e-4), m * (1 + 1e-4)).count_nonzero()
        )


def test_penalties_and_history(operators: CudaOperators) -> None:
    g, rows, size = fresh(), 5, 151936
    history = torch.randint(0, 6, (3, size), generator=g, dtype=torch.int32)
    history[torch.rand(history.shape, generator=g) < 0.9] = 0
    slots = torch.tensor([2, -1, 0, 1, 1], dtype=torch.int32)
    numbers = [torch.rand(rows, generator=g) + 0.5 for _ in range(3)]
    logits = 3 * torch.randn((rows, size), generator=g)
    moved = logits.cuda()
    operators.penalize(moved, history.cuda(), slots.cuda(), *(x.cuda() for x in numbers))
    reference.penalize(logits, history, slots, *numbers)
    torch.testing.assert_close(moved.cpu(), logits, rtol=1e-5, atol=1e-5)
    drawn, counted = torch.tensor([9, 9, 0, 9, 9]), history.cuda()
    operators.record(counted, slots.cuda(), drawn.cuda(), 8)
    reference.record(history, slots, drawn)
    assert torch.equal(counted.cpu(), history)


def test_paged_attention_as_it_is_traced(operators: CudaOperators) -> None:
    """The registered operator itself, on tensors of the device: slots, write and attention."""
    g, lengths = fresh(), [(1, 70), (40, 40), (5, 200)]
    step = Step.random(g, lengths, heads=8, kv_heads=2, head_dim=64, dtype=torch.bfloat16, padding=0)
    tokens = len(step.q)
    k, v = (torch.randn((tokens, 2, 64), generator=g).bfloat16() for _ in range(2))
    pool = step.kv.cuda()
    layout = (x.transpose(0, 1).unsqueeze(0) for x in (step.q.cuda(), k.cuda(), v.cuda()))
    inputs = (step.block_table, step.query_start, step.context_len)
    out = torch.ops.pllm.paged_attention(
        *layout, pool, *(x.cuda() for x in inputs), None, step.layer, step.scale, 0, 0.0
    )
    slots = reference.token_slots(*inputs, tokens, 16)
    reference.norm_rope_write(
        step.q, k, v, None, None, None, None, step.kv, slots, step.layer, 0.0, 0.0, False, 1.0, 1.0
    )
    assert torch.equal(pool.cpu().view(torch.uint8), step.kv.view(torch.uint8))
    assert relative_error(out[0].cpu(), step.expected()) < BFLOAT16_BOUND

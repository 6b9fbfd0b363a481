"""The CUDA kernels' speed: achieved bandwidth against a measured copy and read, beside the library's where it has one.

    python3 tests/perf/gpu/bench_kernels.py --output FILE [--seconds 300] [--only decode] [--search]

Each case is a graph of launches over inputs that rotate, so that none is found in a cache, replayed, timed by events:
the median of the replays over the launches in one. Every row is written when it is known: JSON, a line each. Cases that
the time does not reach are named at the end. --search also times other configurations, for the table in
kernels/cuda/configurations.py: the best row of each shape has "best": true.
"""

import argparse
import datetime
import itertools
import json
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import triton

from pllm.kernels.cuda.configurations import (
    Configurations,
    DecodeConfiguration,
    PrefillConfiguration,
    SmallLinearConfiguration,
)
from pllm.kernels.cuda.operators import CudaOperators

Run = Callable[[int], Any]
"""One launch: that of the number in its graph, over inputs that change with it."""

MODELS = {  # heads, KV heads, head size, hidden, inner
    "Qwen3-0.6B": (16, 8, 128, 1024, 3072),
    "Llama-3.2-1B": (32, 8, 64, 2048, 8192),
    "Qwen3-8B": (32, 8, 128, 4096, 12288),
}
CACHE = 256 << 20
"""Bytes that inputs must exceed together, several times the second-level cache."""


@dataclass(frozen=True)
class Case:
    """What is timed. `prepare` makes the launch and says how many sets of inputs there are; bytes and operations are
    the fewest that the launch must move and do."""

    kernel: str
    label: str
    prepare: Callable[[], tuple[Run, int]]
    moved: float = 0
    operations: float = 0
    library: Callable[[], tuple[Run, int]] | None = None
    shape: dict[str, Any] = field(default_factory=dict)
    configuration: Any = None


def launches_of(sets: int) -> int:
    """How many launches a graph has, for as many sets of inputs."""
    return max(sets, 10)


def microseconds(run: Run, sets: int, *, least: int = 9) -> float:
    """Of one launch: the median of graph replays."""
    launches = launches_of(sets)
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        run(0)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for i in range(launches):
            run(i)
    graph.replay()
    times = []
    for _ in range(least):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        graph.replay()
        end.record()
        end.synchronize()
        times.append(start.elapsed_time(end) * 1e3 / launches)
    return statistics.median(times)


def normal(*shape: int, dtype: torch.dtype = torch.bfloat16) -> torch.Tensor:
    return torch.randn(shape, device="cuda", dtype=torch.float32 if dtype.itemsize == 1 else dtype).to(dtype)


def ceilings() -> Iterator[Case]:
    size = 1 << 30

    def copy() -> tuple[Run, int]:
        source, target = normal(size), torch.empty(size, device="cuda", dtype=torch.bfloat16)
        return lambda i: target.copy_(source), 1

    def read() -> tuple[Run, int]:
        source = normal(size).view(torch.float32)
        return lambda i: source.sum(), 1

    def product() -> tuple[Run, int]:
        a, b = normal(8192, 8192), normal(8192, 8192)
        return lambda i: a @ b, 1

    yield Case("copy", "2 GiB to 2 GiB", copy, moved=4.0 * size)
    yield Case("read", "2 GiB, a sum", read, moved=2.0 * size)
    yield Case("product", "8192^3 bf16", product, operations=2.0 * 8192**3)


def attention(
    operators: CudaOperators, model: str, lengths: list[tuple[int, int]], *, block_size: int = 16, fp8: bool = False
) -> Case:
    """lengths: new tokens and context of each sequence: all of one new token (decode), or none."""
    heads, kv_heads, head_dim, _, _ = MODELS[model]
    decodes = all(new == 1 for new, _ in lengths)
    dtype = torch.float8_e4m3fn if fp8 else torch.bfloat16
    counts = [-(-context // block_size) for _, context in lengths]
    tokens, cached = sum(new for new, _ in lengths), sum(context for _, context in lengths)
    moved = 2 * cached * kv_heads * head_dim * dtype.itemsize + 4 * tokens * heads * head_dim
    pairs = sum(new * (context - new) + new * (new + 1) / 2 for new, context in lengths)

    def prepare() -> tuple[Run, int]:
        layers = max(2, int(CACHE // moved) + 1)
        kv = normal(sum(counts), layers, 2, kv_heads, block_size, head_dim, dtype=dtype)
        order, table = torch.randperm(sum(counts), dtype=torch.int32), torch.zeros(len(lengths), max(counts)).int()
        for b, count in enumerate(counts):
            table[b, :count] = order[sum(counts[:b]) : sum(counts[: b + 1])]
        starts = torch.tensor([new for new, _ in lengths]).cumsum(0)
        inputs = (table, torch.cat((torch.zeros(1), starts)), torch.tensor([context for _, context in lengths]))
        here = [x.int().cuda() for x in inputs]
        q = normal(tokens, heads, head_dim)
        arrivals = torch.zeros((launches_of(layers), tokens, kv_heads), dtype=torch.int32, device="cuda")

        def run(i: int) -> Any:
            if i == 0:
                arrivals.zero_()  # for all launches of a graph; norm_rope_write does it in a program
            return operators.cached_attention(
                q, kv, *here, None, arrivals[i], i % layers, head_dim**-0.5, 0, 0.0, 1.0, 1.0, len(lengths), decodes
            )

        return run, layers

    new, context = lengths[0]
    label = f"{model}: {len(lengths)} x {new} of {context}{', e4m3' if fp8 else ''}, blocks of {block_size}"
    shape = {"head_dim": head_dim, "group": heads // kv_heads, "sequences": len(lengths), "context": context}
    kernel = "decode_attention" if decodes else "prefill_attention"
    return Case(kernel, label, prepare, moved, 4 * pairs * heads * head_dim, shape=shape)


def product(operators: CudaOperators, model: str, rows: int, name: str) -> Case:
    heads, kv_heads, head_dim, hidden, inner = MODELS[model]
    width, depth, is_normed, gated = {
        "query, key, value": ((heads + 2 * kv_heads) * head_dim, hidden, True, False),
        "output": (hidden, heads * head_dim, False, False),
        "gate, up": (2 * inner, hidden, True, True),
        "down": (hidden, inner, False, False),
    }[name]
    moved = 2 * width * depth
    sets = max(2, CACHE // moved + 1)
    max_rows = 1 if rows == 1 else 8

    def inputs() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None, torch.Tensor | None]:
        residual = None if is_normed else normal(rows, width)
        return normal(rows, depth), normal(sets, width, depth), normal(depth) if is_normed else None, residual

    def ours() -> tuple[Run, int]:
        x, weights, norm, residual = inputs()
        return lambda i: operators.small_linear(
            x, weights[i % sets], None, norm, residual, 1e-6, 0.0, gated, max_rows
        ), sets

    def library() -> tuple[Run, int]:
        x, weights, norm, residual = inputs()

        def run(i: int) -> Any:
            normed = x if norm is None else operators.rms_normalize(x, norm, 1e-6, 0.0)
            y = torch.nn.functional.linear(normed, weights[i % sets])
            return operators.silu_mul(y) if gated else y if residual is None else y + residual

        return run, sets

    shape = {"n": width // (2 if gated else 1), "k": depth, "max_rows": max_rows}
    return Case("small_linear", f"{model}: {rows} rows, {name}", ours, moved, library=library, shape=shape)


def others(operators: CudaOperators) -> Iterator[Case]:
    """The kernels that are small: their launch is most of them."""
    for rows in (1, 8, 256):
        for model, (heads, kv_heads, head_dim, hidden, inner) in MODELS.items():

            def write(rows: int = rows, shape: tuple[int, ...] = (heads, kv_heads, head_dim)) -> tuple[Run, int]:
                heads, kv_heads, head_dim = shape
                q, k, v = normal(rows, heads + 2 * kv_heads, head_dim).split((heads, kv_heads, kv_heads), dim=1)
                kv, angles = normal(rows, 2, 2, kv_heads, 16, head_dim), normal(rows, head_dim // 2)
                slots, norm = torch.arange(rows, dtype=torch.int32, device="cuda") * 16, normal(head_dim)
                return lambda i: operators.norm_rope_write(
                    q, k, v, angles, angles, norm, norm, kv, slots, 1, 1e-6, 0.0, False, 1.0, 1.0
                ), 1  # fmt: skip

            def norm(rows: int = rows, size: int = hidden) -> tuple[Run, int]:
                x, weight = normal(rows, size), normal(size)
                return lambda i: operators.add_rms_norm(x, x, weight, 1e-6, 0.0), 1

            def gate(rows: int = rows, size: int = inner) -> tuple[Run, int]:
                x = normal(rows, 2 * size)
                return lambda i: operators.silu_mul(x), 1

            yield Case("norm_rope_write", f"{model}: {rows} rows", write)
            yield Case("add_rms_norm", f"{model}: {rows} rows", norm, moved=8.0 * rows * hidden)
            yield Case("silu_mul", f"{model}: {rows} rows", gate, moved=6.0 * rows * inner)


def sampling(operators: CudaOperators) -> Iterator[Case]:
    size = 151936
    filters = {
        "greedy": (0.0, 0, 1.0, 0.0), "temperature": (1.0, 0, 1.0, 0.0), "top_k 20, top_p .95": (0.6, 20, 0.95, 0.0),
        "top_p .9": (1.0, 0, 0.9, 0.0), "min_p .05": (1.0, 0, 1.0, 0.05),
    }  # fmt: skip
    for rows in (1, 8, 64, 256):
        for name, values in filters.items():
            for spread in (1.0, 4.0):  # a nucleus of tens of thousands, as random weights give, and of tens

                def draw(
                    rows: int = rows, values: tuple[float, ...] = values, spread: float = spread
                ) -> tuple[Run, int]:
                    dtypes = (torch.float32, torch.int32, torch.float32, torch.float32)
                    columns = [torch.full((rows,), x, device="cuda").to(t) for x, t in zip(values, dtypes, strict=True)]
                    logits = spread * normal(rows, size, dtype=torch.float32)
                    numbers = torch.arange(rows, device="cuda")
                    return lambda i: operators.sample_tokens(logits, *columns, numbers, numbers), 1

                label = f"{rows} rows, {name}, spread {spread:g}"
                yield Case("sample_tokens", label, draw, moved=4.0 * rows * size)


def cases(operators: CudaOperators) -> Iterator[Case]:
    yield from ceilings()
    fp8 = operators.configurations.device.native_fp8
    for model in MODELS:
        for sequences, context in ((1, 1024), (8, 1024), (64, 1024), (256, 1024), (1, 65536), (8, 16384)):
            yield attention(operators, model, [(1, context)] * sequences)
    for sequences, context in ((64, 1024), (256, 1024), (1, 65536)):
        yield attention(operators, "Qwen3-0.6B", [(1, context)] * sequences, block_size=64)
        if fp8:
            yield attention(operators, "Qwen3-0.6B", [(1, context)] * sequences, fp8=True)
    yield attention(operators, "Qwen3-0.6B", [(1, 100 + 97 * i % 2000) for i in range(256)])
    for model in MODELS:
        for rows in (1, 2, 8):
            for name in ("query, key, value", "output", "gate, up", "down"):
                yield product(operators, model, rows, name)
    for model in MODELS:
        for new, context in ((512, 512), (2048, 2048), (8192, 8192), (512, 8192)):
            yield attention(operators, model, [(new, context)])
    yield from others(operators)
    yield from sampling(operators)


def searched(operators: CudaOperators) -> Iterator[list[Case]]:
    """Other configurations of one shape each."""
    name, device = operators.configurations.device_name, operators.configurations.device

    def with_configurations(**rows: Any) -> CudaOperators:
        return CudaOperators(Configurations(name, **rows))

    for model, (heads, kv_heads, head_dim, _, _) in MODELS.items():
        shape = (head_dim, heads // kv_heads)
        for sequences, context in ((1, 8192), (256, 1024)):
            found = []
            for per, block_n, warps, stages in itertools.product((1, 2, 4), (32, 64, 128), (4, 8), (3, 5, 7)):
                row = DecodeConfiguration(per * device.multiprocessors, block_n, warps, stages)
                case = attention(with_configurations(decode={shape: row}), model, [(1, context)] * sequences)
                found.append(Case(**{**vars(case), "configuration": row}))
            yield found
        found = []
        for m, n, warps, stages in itertools.product((64, 128), (32, 64, 128), (4, 8), (2, 3, 5)):
            tile = PrefillConfiguration(m, n, warps, stages)
            case = attention(with_configurations(prefill={shape: tile}), model, [(2048, 2048)])
            found.append(Case(**{**vars(case), "configuration": tile}))
        yield found
        for rows in (1, 8):
            for product_name in ("query, key, value", "output", "gate, up", "down"):
                found = []
                base = product(operators, model, rows, product_name)
                key = (base.shape["n"], base.shape["k"], base.shape["max_rows"])
                blocks: tuple[tuple[int, int], ...]
                if rows == 1:
                    blocks, warp_counts = ((2, 2048), (4, 512), (4, 1024), (8, 256), (8, 512), (16, 256)), (2, 4, 8)
                else:
                    blocks, warp_counts = ((16, 128), (16, 256), (16, 512), (32, 128), (32, 256), (64, 128)), (1, 2, 4)
                for (n, k), warps, stages in itertools.product(blocks, warp_counts, (2, 3, 4, 6)):
                    choice = SmallLinearConfiguration(n, k, warps, stages)
                    case = product(with_configurations(small_linear={key: choice}), model, rows, product_name)
                    found.append(Case(**{**vars(case), "configuration": choice, "library": None}))
                yield found


class Rows:
    """The results: appended to a file one by one, and kept for the table."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._common = {
            "part": "kernels",
            "date": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d"),
            "gpu": torch.cuda.get_device_name(),
            "torch": torch.__version__,
            "triton": triton.__version__,
        }
        self._ceilings: dict[str, float] = {}
        path.parent.mkdir(parents=True, exist_ok=True)

    def add(self, case: Case) -> dict[str, Any]:
        """Time a case and write its row; one that cannot run has the error instead, and the others go on."""
        row: dict[str, Any] = {**self._common, "kernel": case.kernel, "case": case.label, **case.shape}
        if case.configuration is not None:
            row["configuration"] = {name: getattr(case.configuration, name) for name in case.configuration.__slots__}
        try:
            row["microseconds"] = time_us = microseconds(*case.prepare())
            if case.moved:
                row["gigabytes_per_second"] = case.moved / time_us / 1e3
                if "read" in self._ceilings:
                    row["of_read"] = row["gigabytes_per_second"] / self._ceilings["read"]
            if case.operations:
                row["teraflops"] = case.operations / time_us / 1e6
            if case.library is not None:
                row["library_microseconds"] = microseconds(*case.library())
            if case.kernel in ("copy", "read"):
                self._ceilings[case.kernel] = row["gigabytes_per_second"]
        except (RuntimeError, triton.TritonError) as error:
            row["error"] = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        torch.cuda.empty_cache()
        self.write(row)
        return row

    def write(self, row: dict[str, Any]) -> None:
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")


def show(row: dict[str, Any]) -> None:
    if "error" in row:
        print(f"{row['kernel']:18} {row['case']:50} failed: {row['error']}", flush=True)
        return
    shares = f"{row['gigabytes_per_second']:7.0f} GB/s" if "gigabytes_per_second" in row else " " * 12
    shares += f" {row['of_read']:4.0%} of read" if "of_read" in row else " " * 13
    shares += f" {row['teraflops']:6.1f} TFLOP/s" if row.get("teraflops", 0) > 1 else ""
    shares += f" library {row['library_microseconds']:.1f} us" if "library_microseconds" in row else ""
    print(f"{row['kernel']:18} {row['case']:50} {row['microseconds']:9.1f} us {shares}", flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True, help="JSON, a line a case; appended to")
    parser.add_argument("--seconds", type=float, default=300, help="start no case after this")
    parser.add_argument("--only", help="kernels whose name contains this, and the ceilings")
    parser.add_argument("--search", action="store_true", help="time other configurations instead")
    options = parser.parse_args()
    end = time.monotonic() + options.seconds
    operators = CudaOperators(Configurations.shipped(torch.cuda.get_device_capability()))
    rows, unreached, failed = Rows(options.output), 0, 0
    groups = searched(operators) if options.search else ([case] for case in cases(operators))
    if options.search:
        for case in ceilings():
            show(rows.add(case))
    for group in groups:
        if options.only and options.only not in group[0].kernel and group[0].kernel not in ("copy", "read", "product"):
            continue
        found = []
        for case in group:
            if time.monotonic() > end:
                unreached += 1
                continue
            found.append(rows.add(case))
            failed += "error" in found[-1] and not options.search  # a search tries what does not fit, too
            if not options.search:
                show(found[-1])
        timed = [row for row in found if "microseconds" in row]
        if options.search and timed:
            best = min(timed, key=lambda row: row["microseconds"])
            rows.write({**best, "best": True})
            show(best)
            print(f"    {best['configuration']}", flush=True)
    print(f"rows: {options.output}; failed: {failed}; not reached: {unreached}")
    return 1 if failed else 0


if __name__ == "__main__":
    raise SystemExit(main())

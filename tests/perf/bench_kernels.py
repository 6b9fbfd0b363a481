"""Bandwidth and arithmetic rate of the CPU operators on the shapes of Qwen3-0.6B; torch's float32 linear beside them.

    .venv/bin/python tests/perf/bench_kernels.py [--threads 2] [--library PATH] [--only linear|attention|sampling]

Best of N, interleaved with a plain read of memory, since a shared machine's bandwidth moves while one looks.
"""

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from pllm.kernels.cpu.compile import build_library
from pllm.kernels.cpu.library import CpuLibrary

SHAPES = {"qkv": (4096, 1024), "o": (1024, 2048), "gate+up": (6144, 1024), "down": (1024, 3072), "head": (151936, 1024)}
ROWS = (1, 2, 4, 8, 12, 16, 32, 128, 256, 512)
STEPS = (
    (1, 1, 160),
    (8, 1, 160),
    (16, 1, 200),
    (1, 1, 4096),
    (8, 1, 2048),
    (1, 128, 128),
    (1, 512, 512),
    (1, 128, 2048),
)
FILTERS = {  # top_k, top_p, min_p
    "temperature": (0, 1.0, 0.0),
    "top_k 20": (20, 1.0, 0.0),
    "top_k 20, top_p .95": (20, 0.95, 0.0),
    "top_p .95": (0, 0.95, 0.0),
    "min_p .05": (0, 1.0, 0.05),
}
console = Console()


def best(call: Callable[[int], object], seconds: float = 0.25, least: int = 3) -> float:
    """The shortest time of a call, in seconds; the call is told its number."""
    call(0)
    times: list[float] = []
    end = time.perf_counter() + seconds
    while len(times) < least or time.perf_counter() < end:
        start = time.perf_counter()
        call(len(times))
        times.append(time.perf_counter() - start)
    return min(times)


def linear(library: CpuLibrary, rows: tuple[int, ...]) -> None:
    """Each call takes the next of several copies of the weight, so that none is found in a cache."""
    g = np.random.default_rng(0)
    table = Table(
        title=f"linear, {library.num_threads} threads, {library.isa}: GB/s of weights | Gflop/s | x torch float32"
    )
    for column in ("", "storage", *(f"M={m}" for m in rows)):
        table.add_column(column, justify="right")
    for name, (n, k) in SHAPES.items():
        for size in (4, 2):
            panels = -(-n // 32)
            copies = max(1, min(12, (160 << 20) // (n * k * size)))
            # Small exponents: neither denormals nor infinities as bfloat16.
            weights: NDArray[np.float32] | NDArray[np.uint16] = (
                g.standard_normal((copies, panels, k, 32), np.float32) if size == 4
                else (g.integers(0, 0x80, (copies, panels, k, 32)) + 0x3F00).astype(np.uint16)
            )  # fmt: skip
            plain = torch.randn(max(1, copies // (3 - size // 2)), n, k)
            cells = []
            for m in rows:
                x, y = g.standard_normal((m, k), np.float32), np.empty((m, n), np.float32)
                x_torch, copies_torch = torch.from_numpy(x), len(plain)

                def ours(i: int, x=x, y=y, weights=weights, copies=copies, n=n) -> None:
                    library.linear(x, weights[i % copies], None, n, out=y)

                def theirs(i: int, x=x_torch, plain=plain, copies=copies_torch) -> None:
                    torch.nn.functional.linear(x, plain[i % copies])

                t, other = best(ours), best(theirs)
                cells.append(f"{n * k * size / t / 1e9:.1f} | {2 * m * n * k / t / 1e9:.0f} | {other / t:.2f}")
            table.add_row(name, "float32" if size == 4 else "bfloat16", *cells)
    console.print(table)


def attention(library: CpuLibrary) -> None:
    """Qwen3-0.6B's heads, bfloat16 cache of blocks of 16."""
    g = np.random.default_rng(0)
    table = Table(title=f"attention of one layer, {library.num_threads} threads, {library.isa}")
    for column in ("new tokens x context", "microseconds", "GB/s of cache", "Gflop/s"):
        table.add_column(column, justify="right")
    heads, kv_heads, dim, block = 16, 8, 128, 16
    for batch, new, context in STEPS:
        per = -(-context // block)
        layers = 4
        kv = (g.integers(0, 0x80, (batch * per, layers, 2, kv_heads, block, dim)) + 0x3F00).astype(np.uint16)
        blocks = g.permutation(batch * per).astype(np.int32).reshape(batch, per)
        q = g.standard_normal((batch * new, heads, dim), np.float32)
        k = g.standard_normal((batch * new, kv_heads, dim), np.float32)
        start = np.arange(batch + 1, dtype=np.int32) * new
        lengths = np.full(batch, context, np.int32)

        out = np.empty_like(q)

        def step(i: int, *arguments: NDArray[Any], layers: int = layers, out: NDArray[np.float32] = out) -> object:
            return library.paged_attention(*arguments, layer=i % layers, scale=0.09, out=out)

        arguments = (q, k, k, kv, blocks, start, lengths)
        t = best(lambda i: step(i, *arguments))  # noqa: B023
        pairs = batch * (new * (context - new) + new * (new + 1) / 2)
        table.add_row(
            f"{batch} x {new} x {context}", f"{t * 1e6:.0f}", f"{batch * context * kv_heads * dim * 4 / t / 1e9:.1f}",
            f"{pairs * heads * dim * 4 / t / 1e9:.0f}",
        )  # fmt: skip
    console.print(table)


def sampling(library: CpuLibrary) -> None:
    """Rows of Qwen3's vocabulary, Gaussian logits: a wider nucleus than a trained model's."""
    table = Table(
        title=f"sampling from 151,936 logits, microseconds a row, {library.num_threads} threads, {library.isa}"
    )
    for column in ("", "1 row", "8 rows"):
        table.add_column(column, justify="right")
    logits = np.random.default_rng(0).normal(0, 2, (8, 151936)).astype(np.float32)
    calls: dict[str, Callable[[int], object]] = {
        "argmax": lambda r: library.argmax(logits[:r]),
        "logsumexp": lambda r: library.logsumexp(logits[:r]),
    }
    for name, (k, p, m) in FILTERS.items():
        t, ks, u = np.full(8, 0.8, np.float32), np.full(8, k, np.int32), np.full(8, 0.5)
        ps, ms = np.full(8, p, np.float32), np.full(8, m, np.float32)

        def draw(r: int, k: NDArray[np.int32] = ks, p: NDArray[np.float32] = ps, m: NDArray[np.float32] = ms) -> object:
            return library.sample_rows(logits[:r], t[:r], k[:r], p[:r], m[:r], u[:r])  # noqa: B023

        calls[name] = draw
    for name, call in calls.items():
        table.add_row(name, *(f"{best(lambda _: call(r)) / r * 1e6:.0f}" for r in (1, 8)))  # noqa: B023
    console.print(table)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--library", type=Path)
    parser.add_argument("--only", choices=["linear", "attention", "sampling"])
    parser.add_argument("--rows", type=int, nargs="+", default=list(ROWS))
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    with tempfile.TemporaryDirectory() as folder:
        library = CpuLibrary.open(options.library or build_library(Path(folder) / "libpllm_ops.so"))
        library.set_num_threads(options.threads)
        if options.only in (None, "linear"):
            linear(library, tuple(options.rows))
        if options.only in (None, "attention"):
            attention(library)
        if options.only in (None, "sampling"):
            sampling(library)


if __name__ == "__main__":
    main()

"""Profile: what a step takes of time and memory on this machine, measured and never extrapolated.

Measured in a process of its own that holds what a serving process holds and nothing else: in the build's, with torch
and Inductor loaded, a prefill of 128 tokens of the quickstart model was once seen to take 592 ms instead of 6.
"""

import json
import multiprocessing
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from pllm.build.pipeline import Build
from pllm.build.progress import StageProgress
from pllm.build.rehearsal import Rehearsal, RehearsalSpec, rehearsal
from pllm.runtime.errors import BuildError
from pllm.runtime.manifest import EngineDefaults
from pllm.runtime.memory import MemoryLedger, format_bytes
from pllm.runtime.program import load_torch

__all__ = ["Measured", "measure", "profile"]

_REPEATS = 5
_DECODE_CONTEXT = 128
_PREFILL_SIZES = (32, 128)


@dataclass(frozen=True, slots=True)
class Measured:
    """Bytes, and rows of the latency table."""

    activations: int
    runtime: int
    decode: list[dict[str, float]]
    prefill: list[dict[str, float]]


def profile(build: Build, progress: StageProgress) -> None:
    """Measure latencies and memory; choose the prefill chunk."""
    engine = build.recipe.engine
    buckets = tuple(sorted(int(bucket) for bucket in engine.buckets))
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as process:
        measured = process.submit(measure, RehearsalSpec.of(build), buckets).result()
    rows = [*measured.decode, *measured.prefill]
    build.staging.path("measured/latency.json").write_text(
        json.dumps({"rows": rows}, indent=1) + "\n", encoding="utf-8"
    )
    target = engine.inter_token_target_ms
    within = [row["num_tokens"] for row in measured.prefill if target is None or row["ms"] <= target]
    chunk = int(max(within, default=measured.prefill[0]["num_tokens"]))
    build.memory = MemoryLedger(
        weights=build.weights.num_bytes,
        activations=measured.activations,
        runtime=measured.runtime,
        kv_block=build.kv.block_bytes,
    )
    build.engine = EngineDefaults(
        max_model_len=int(engine.max_model_len),
        max_num_seqs=engine.max_num_seqs,
        max_num_batched_tokens=engine.max_num_batched_tokens,
        memory=engine.memory,
        threads=engine.threads,
        buckets=buckets,
        prefill_chunk=chunk,
        inter_token_target_ms=target,
    )
    progress.say(", ".join(f"decode {row['num_seqs']}: {row['ms']:.2f} ms" for row in measured.decode))
    progress.say(", ".join(f"prefill {row['num_tokens']}: {row['ms']:.2f} ms" for row in measured.prefill))
    progress.say(
        f"weights {format_bytes(build.memory.weights)}, activations {format_bytes(measured.activations)}, "
        f"runtime {format_bytes(measured.runtime)}; prefill chunk {chunk}"
    )


def measure(spec: RehearsalSpec, buckets: tuple[int, ...]) -> Measured:
    """In a fresh process: what it holds before anything is opened, then the largest step, then every bucket."""
    load_torch()
    runtime = _status("VmRSS")
    with rehearsal(spec) as opened:
        largest = opened.config.max_num_batched_tokens
        activations = _peak_of_largest_step(opened)
        context = min(_DECODE_CONTEXT, opened.config.max_model_len)
        decode = [_measure(opened, bucket, bucket, context) for bucket in buckets]
        sizes = sorted({min(size, largest) for size in (*_PREFILL_SIZES, largest)})
        prefill = [_measure(opened, 1, size, size) for size in sizes]
    return Measured(activations, runtime, decode, prefill)


def _measure(opened: Rehearsal, num_seqs: int, num_tokens: int, context: int) -> dict[str, float]:
    """The median of a few steps: ``num_tokens`` new tokens of ``num_seqs`` sequences, ``context`` tokens each after it,
    as :func:`pllm.runtime.certificate.measure_step` repeats it."""
    new = num_tokens // num_seqs
    batch = [(context - new, [0] * new)] * num_seqs
    opened.forward(batch)
    durations = []
    for _ in range(_REPEATS):
        began = time.perf_counter()
        opened.forward(batch)
        durations.append(time.perf_counter() - began)
    median = sorted(durations)[_REPEATS // 2]
    return {"num_seqs": num_seqs, "num_tokens": num_tokens, "context": context, "ms": round(median * 1e3, 4)}


def _peak_of_largest_step(opened: Rehearsal) -> int:
    """Bytes that the process grows by at most during the largest step, in its first, coldest run."""
    size = opened.config.max_num_batched_tokens - opened.config.max_num_seqs + 1
    batch = [(0, [0])] * (opened.config.max_num_seqs - 1) + [(0, [0] * size)]
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # the peak starts anew
    before = _status("VmRSS")
    opened.forward(batch)
    return max(_status("VmHWM") - before, 0)


def _status(field: str) -> int:
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) * 1024
    raise BuildError(f"/proc/self/status has no {field}")

"""Profile: what a step takes of time and memory on this machine, measured and never extrapolated."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

from pllm.build.pipeline import Build
from pllm.build.progress import StageProgress
from pllm.build.rehearsal import Rehearsal, rehearsal
from pllm.runtime.errors import BuildError
from pllm.runtime.manifest import EngineDefaults
from pllm.runtime.memory import MemoryLedger, format_bytes

__all__ = ["profile"]

_REPEATS = 3
_DECODE_CONTEXT = 128
_IDLE_RUNTIME = (
    "import pllm.runtime.engine_core; from pllm.runtime.program import load_torch; load_torch(); "
    "print(open('/proc/self/statm').read().split()[1])"
)


def profile(build: Build, progress: StageProgress) -> None:
    """Measure latencies and memory; choose the prefill chunk."""
    engine = build.recipe.engine
    buckets = _buckets(build)
    with rehearsal(build) as opened:
        activations = _peak_of_largest_step(opened)
        context = min(_DECODE_CONTEXT, opened.config.max_model_len - 1)
        rows = [_measure(opened, bucket, 1, context) for bucket in buckets]
        rows += [_measure(opened, 1, size, 0) for size in _prefill_sizes(opened)]
    build.staging.path("measured/latency.json").write_text(json.dumps({"rows": rows}, indent=1) + "\n", encoding="utf-8")
    target = engine.inter_token_target_ms
    within = [row["num_tokens"] for row in rows[len(buckets) :] if target is None or row["ms"] <= target]
    chunk = int(max(within, default=min(_prefill_sizes_of(engine.max_num_batched_tokens))))
    build.memory = MemoryLedger(
        weights=build.weights.num_bytes,
        activations=activations,
        runtime=_idle_runtime(),
        kv_block=build.kv.block_bytes,
    )
    build.engine = EngineDefaults(
        max_model_len=int(engine.max_model_len),
        max_num_seqs=engine.max_num_seqs,
        max_num_batched_tokens=engine.max_num_batched_tokens,
        memory=engine.memory,
        threads=engine.threads,
        buckets=tuple(buckets),
        prefill_chunk=chunk,
        inter_token_target_ms=target,
    )
    progress.say(", ".join(f"decode {row['num_seqs']}: {row['ms']:.2f} ms" for row in rows[: len(buckets)]))
    progress.say(", ".join(f"prefill {row['num_tokens']}: {row['ms']:.2f} ms" for row in rows[len(buckets) :]))
    progress.say(
        f"weights {format_bytes(build.memory.weights)}, activations {format_bytes(activations)}, "
        f"runtime {format_bytes(build.memory.runtime)}; prefill chunk {chunk}"
    )


def _buckets(build: Build) -> list[int]:
    chosen = build.recipe.engine.buckets
    return sorted(int(bucket) for bucket in chosen)


def _prefill_sizes_of(largest: int) -> list[int]:
    return sorted({min(size, largest) for size in (32, 128, largest)})


def _prefill_sizes(opened: Rehearsal) -> list[int]:
    return _prefill_sizes_of(opened.config.max_num_batched_tokens)


def _measure(opened: Rehearsal, num_seqs: int, num_tokens: int, context: int) -> dict[str, float]:
    """The best of a few steps of ``num_seqs`` sequences with ``num_tokens`` new tokens each after ``context``."""
    batch = [(context, [0] * num_tokens)] * num_seqs
    opened.forward(batch)
    best = float("inf")
    for _ in range(_REPEATS):
        began = time.perf_counter()
        opened.forward(batch)
        best = min(best, time.perf_counter() - began)
    return {"num_seqs": num_seqs, "num_tokens": num_tokens, "context": context, "ms": round(best * 1e3, 4)}


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


def _idle_runtime() -> int:
    """Resident bytes of a process that has loaded all that serving needs, and no artifact."""
    done = subprocess.run([sys.executable, "-c", _IDLE_RUNTIME], capture_output=True, text=True, check=False)
    if done.returncode:
        raise BuildError("the runtime cannot be loaded: " + done.stderr.strip()[-500:])
    return int(done.stdout) * os.sysconf("SC_PAGE_SIZE")

"""Profile: what a step takes of time and memory on this machine, measured and never extrapolated."""

import msgspec

from pllm.build.measurement import Question, ask
from pllm.build.pipeline import Build
from pllm.build.progress import StageProgress
from pllm.build.rehearsal import RehearsalSpec
from pllm.runtime.gate.calibration import Calibration
from pllm.runtime.latencies import Latencies
from pllm.runtime.machine import cpu_name, thread_counts
from pllm.runtime.manifest import EngineDefaults
from pllm.runtime.memory import MemoryLedger, format_bytes

__all__ = ["profile"]


def profile(build: Build, progress: StageProgress) -> None:
    """Measure latencies and memory; choose the prefill chunk. Raises BuildError where nothing can be measured."""
    engine = build.recipe.engine
    buckets = tuple(sorted(int(bucket) for bucket in engine.buckets))
    threads = (engine.threads,) if isinstance(engine.threads, int) else thread_counts()
    measured = ask(Question(RehearsalSpec.of(build), buckets, threads))
    latencies = Latencies((*measured.decode, *measured.prefill), Calibration().seconds(), cpu_name())
    document = msgspec.json.format(msgspec.json.encode(latencies), indent=1)
    build.staging.path("measured/latency.json").write_bytes(document + b"\n")
    target = engine.inter_token_target_ms
    within = [row.num_tokens for row in measured.prefill if target is None or row.ms <= target]
    chunk = max(within, default=measured.prefill[0].num_tokens)
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
        tuning=measured.tuning,
        buckets=buckets,
        prefill_chunk=chunk,
        inter_token_target_ms=target,
    )
    progress.say(f"tuned: {measured.tuning}")
    progress.say(", ".join(f"decode {row.num_seqs}: {row.ms:.2f} ms" for row in measured.decode))
    progress.say(", ".join(f"prefill {row.num_tokens}: {row.ms:.2f} ms" for row in measured.prefill))
    progress.say(
        f"weights {format_bytes(build.memory.weights)}, activations {format_bytes(measured.activations)}, "
        f"runtime {format_bytes(measured.runtime)}; prefill chunk {chunk}"
    )

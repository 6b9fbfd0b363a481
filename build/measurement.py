"""The measurement: what a step takes of time and memory on this machine, in a process that holds what a serving one
holds and nothing else.

In the build's own process, with torch and Inductor loaded, a prefill of 128 tokens of the quickstart model was once
seen to take 592 ms instead of 6. As a program (``python -m pllm.build.measurement``) this reads a Question from
standard input and writes what was Measured to standard output, both as JSON.
"""

import math
import subprocess
import sys
import time
from pathlib import Path

import msgspec

from pllm.build.cpu_tuning import tune
from pllm.build.rehearsal import Rehearsal, RehearsalSpec, rehearsal
from pllm.runtime.certificate import measure_step, step_of
from pllm.runtime.errors import BuildError, PllmError
from pllm.runtime.largest_steps import largest_steps
from pllm.runtime.latencies import Latency
from pllm.runtime.machine import cpu_count
from pllm.runtime.manifest import CpuTuning
from pllm.runtime.step import SchedulerOutput

__all__ = ["Measured", "Question", "ask", "largest_steps", "measure"]

_DECODE_CONTEXT = 128
_PREFILL_SIZES = (32, 128)
_TUNED_PREFILL = 128
_TUNED_SECONDS = 0.01


class Question(msgspec.Struct, frozen=True):
    """What is to be measured: every bucket, and a few prefill sizes."""

    spec: RehearsalSpec
    buckets: tuple[int, ...]
    threads: tuple[int, ...]
    """Numbers of threads to choose from."""


class Measured(msgspec.Struct, frozen=True):
    """Bytes, and rows of the latency table."""

    activations: int
    """By how much the largest step makes the process grow."""
    runtime: int
    """What the process holds beside the weights and the KV pool, between steps."""
    tuning: CpuTuning
    decode: tuple[Latency, ...]
    prefill: tuple[Latency, ...]


def ask(question: Question) -> Measured:
    """Measure in a process of its own. Raises BuildError with its last words where it fails."""
    command = [sys.executable, "-P", "-m", "pllm.build.measurement"]
    done = subprocess.run(command, input=msgspec.json.encode(question), capture_output=True, check=False)
    if done.returncode:
        said = done.stderr.decode(errors="replace").strip().splitlines()
        reason = said[-1] if said else f"exit code {done.returncode}"
        raise BuildError(f"the compiled program cannot be measured: {reason}")
    return msgspec.json.decode(done.stdout, type=Measured)


def measure(question: Question) -> Measured:
    """Measure in this process."""
    with rehearsal(question.spec) as opened:
        config = opened.config
        activations, runtime = _memory(opened)
        tuning = _tune(opened, question)
        largest = min(config.max_num_batched_tokens, config.max_model_len)
        context = min(_DECODE_CONTEXT, config.max_model_len)
        decode = tuple(_latency(opened, bucket, bucket, context) for bucket in question.buckets)
        sizes = sorted({min(size, largest) for size in (*_PREFILL_SIZES, largest)})
        prefill = tuple(_latency(opened, 1, size, size) for size in sizes)
    return Measured(activations, runtime, tuning, decode, prefill)


def _tune(opened: Rehearsal, question: Question) -> CpuTuning:
    """By a step of one sequence, one of the largest bucket, and a prompt; leaves the library as it is tuned."""
    config = opened.config
    context = min(_DECODE_CONTEXT, config.max_model_len)
    prompt = min(_TUNED_PREFILL, config.max_num_batched_tokens, config.max_model_len)
    shapes = ((1, 1, context), (max(question.buckets),) * 2 + (context,), (1, prompt, prompt))
    steps = [step_of(config, num_seqs, num_tokens, length) for num_seqs, num_tokens, length in shapes]

    def use(tuning: CpuTuning) -> None:
        opened.library.set_num_threads(tuning.threads)
        opened.library.set_tiling(tuning.streamed, tuning.blocked, tuning.rows)

    def times(tuning: CpuTuning) -> list[float]:
        use(tuning)
        return [_shortest(opened, step) for step in steps]

    start = CpuTuning(cores=cpu_count(), threads=question.threads[0])
    best = tune(start, question.threads, times)
    use(best)
    return best


def _memory(opened: Rehearsal) -> tuple[int, int]:
    """Bytes of activations and of the runtime.

    The weights' pages and the pool's are there before the first step, and a small step has been run: what grows during
    the largest steps is their own. Steps of other sizes may leave half as much again with the thread, which keeps
    memory for its next tensors (`kernels/cpu/memory.cpp`).
    """
    opened.pool.array.fill(0)  # an older kernel leaves pages to their first use
    small = SchedulerOutput(next(largest_steps(opened.config)).rows[-1:])
    opened.runner.execute(small)
    before = _status("VmRSS")
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # the peak starts anew
    for step in largest_steps(opened.config):
        opened.runner.execute(step)
    activations = max(_status("VmHWM") - before, 0)
    return activations + activations // 2, max(before - opened.num_weight_bytes - opened.pool.array.nbytes, 0)


def _latency(opened: Rehearsal, num_seqs: int, num_tokens: int, context: int) -> Latency:
    ms = measure_step(opened.runner, opened.config, num_seqs, num_tokens, context)
    return Latency(num_seqs, num_tokens, context, round(ms, 4))


def _shortest(opened: Rehearsal, step: SchedulerOutput) -> float:
    """Seconds of a step, the shortest of as many as fit into ten milliseconds: short ones are the easiest disturbed."""
    began = time.perf_counter()
    end, shortest = began + _TUNED_SECONDS, math.inf
    while True:
        opened.runner.execute(step)
        ended = time.perf_counter()
        shortest = min(shortest, ended - began)
        if ended >= end:
            return shortest
        began = ended


def _status(field: str) -> int:
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) * 1024
    raise BuildError(f"/proc/self/status has no {field}")


def _main() -> int:
    try:
        measured = measure(msgspec.json.decode(sys.stdin.buffer.read(), type=Question))
    except PllmError as error:
        print(error, file=sys.stderr)
        return 1
    sys.stdout.buffer.write(msgspec.json.encode(measured))
    return 0


if __name__ == "__main__":
    sys.exit(_main())

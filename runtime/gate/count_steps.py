"""What decoding steps call, allocate and keep, counted in a process of its own.

``python -P -m pllm.runtime.gate.count_steps ARTIFACT calls|allocations`` writes one JSON object on standard output.
"""

import gc
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from inspect import isfunction
from pathlib import Path

import msgspec

from pllm.kernels.cpu.library import CpuLibrary, load_library
from pllm.runtime.artifact import Artifact
from pllm.runtime.certificate import Golden, replay
from pllm.runtime.engine_core import EngineCore
from pllm.runtime.errors import PllmError
from pllm.runtime.gate.allocation_counter import opened_counter
from pllm.runtime.gate.call_counter import count_calls, counted_calls
from pllm.runtime.gate.counts import Counts, golden_digest
from pllm.runtime.gate.steady_steps import DRAWN, SteadySteps
from pllm.runtime.kv_pool import KvPool
from pllm.runtime.model_options import ModelOptions, open_model
from pllm.runtime.program import Program

__all__ = ["count_allocations", "count_steps"]

_WAVES_BEFORE = 6
"""Waves of sequences until caches, lists and dictionaries are as large as they will be."""
_WAVES = 4
_THREADS = 2
"""Loops are shared by so many, whatever the machine has."""


def count_steps(artifact: Path) -> Counts:
    """Python's calls, the program's runs, the operators that Python calls, copies of KV blocks, loops that threads
    share, Python's objects that are kept, and the golden tokens. Raises as `EngineCore.open`."""
    operators = [name for name, member in vars(CpuLibrary).items() if isfunction(member) and not name.startswith("_")]
    found: Counts = {}
    with _opened(artifact, threads=_THREADS) as (core, steady):
        num_loops = getattr(load_library(artifact / core.manifest.operators[0]), "pllm_num_loops", None)
        for num_seqs in steady.batches:
            where = _where(steady.size, num_seqs)
            plain = steady.run(num_seqs, count_calls)
            text = steady.run(num_seqs, count_calls, text=True)
            drawn = steady.run(num_seqs, count_calls, params=DRAWN)
            for kind, counted in (("", plain), ("with text, ", text), ("drawn, ", drawn)):
                found[f"Python calls, {kind}{where}"] = counted.python
                found[f"C calls, {kind}{where}"] = counted.native
            found |= {f"{name}, {where}": count for name, count in _passages(steady, num_seqs, operators).items()}
            if num_loops is not None:
                found[f"loops shared by threads, {where}"] = steady.run(num_seqs, _growth_of(num_loops))
            found[f"objects kept a step, {where}"] = _kept(steady, num_seqs)
        found["golden tokens"] = _golden(core, artifact)
    return found


def count_allocations(artifact: Path) -> Counts:
    """Allocations by Python and by all libraries, with one thread: others allocate when the machine lets them."""
    count = opened_counter()
    found: Counts = {}
    with _opened(artifact, threads=1) as (_, steady):
        for num_seqs in steady.batches:
            for _ in range(_WAVES_BEFORE):
                steady.run(num_seqs, _just_run)
            found[f"allocations, {_where(steady.size, num_seqs)}"] = steady.run(num_seqs, _growth_of(count))
    return found


@contextmanager
def _opened(artifact: Path, *, threads: int) -> Iterator[tuple[EngineCore, SteadySteps]]:
    """Nothing happens beside the steps: the pool is taken, and no collection begins."""
    options = ModelOptions.of("counting", str(artifact), {"enable_prefix_caching": False, "threads": threads})
    core, intake = open_model(options)
    try:
        core.wait_settled()
        gc.collect()
        gc.disable()
        yield core, SteadySteps(core.engine, intake)
    finally:
        gc.enable()
        core.close()


def _where(size: int, num_seqs: int) -> str:
    return f"{size} steps of {num_seqs} sequence{'s' if num_seqs > 1 else ''}"


def _passages(steady: SteadySteps, num_seqs: int, operators: list[str]) -> Counts:
    """How often a step goes through the runtime's doors to native code."""

    def measure(steps: Callable[[], None]) -> Counts:
        with (
            counted_calls(Program, "run") as runs,
            counted_calls(CpuLibrary, *operators) as called,
            counted_calls(KvPool, "copy_blocks") as copies,
        ):
            steps()
        return {
            "runs of a program": len(runs),
            "operators called from Python": len(called),
            "copies of KV blocks": len(copies),
        }

    return steady.run(num_seqs, measure)


def _growth_of(count: Callable[[], int]) -> Callable[[Callable[[], None]], int]:
    def measure(steps: Callable[[], None]) -> int:
        before = count()
        steps()
        return count() - before

    return measure


def _just_run(steps: Callable[[], None]) -> None:
    steps()


def _kept(steady: SteadySteps, num_seqs: int) -> int:
    """Objects of Python's that stay when their sequences have gone, for each step, to the nearest whole number.

    Of several waves the one that grew least: dictionaries and free lists grow and shrink by themselves, now and then,
    and what a step keeps is kept in every wave.
    """
    growths = []
    for _ in range(_WAVES_BEFORE + _WAVES):
        before = sys.getallocatedblocks()
        steady.run(num_seqs, _just_run)
        gc.collect()
        growths.append(sys.getallocatedblocks() - before)
    return max(0, round(min(growths[_WAVES_BEFORE:]) / steady.num_tokens))


def _golden(core: EngineCore, artifact: Path) -> str:
    """What the golden prompts are continued by here."""
    path = Artifact.read(artifact).path(core.manifest.golden)
    prompts = msgspec.json.decode(path.read_bytes(), type=Golden).prompts
    answers = replay(core.engine, [(prompt.prompt_token_ids, len(prompt.token_ids)) for prompt in prompts])
    return golden_digest([prompt.prompt_token_ids for prompt in prompts], answers)


def _main() -> int:
    artifact, what = sys.argv[1:]
    try:
        found = {"calls": count_steps, "allocations": count_allocations}[what](Path(artifact))
    except PllmError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    sys.stdout.buffer.write(msgspec.json.encode(found))
    return 0


if __name__ == "__main__":
    sys.exit(_main())

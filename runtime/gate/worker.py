"""One side of a gate, in a process of its own: opens an artifact, and measures what it is asked for, turn by turn.

``python -P -m pllm.runtime.gate.worker`` reads a Job, then Turns, from standard input and answers each on standard
output; where the input ends it says what it held, and ends. Between turns it waits and takes no processor time.
"""

import sys
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

import msgspec

from pllm.runtime.errors import MeasurementError, PllmError
from pllm.runtime.gate.quiet import WAIT_SHARE, RunWait
from pllm.runtime.gate.turns import VERSION, Closed, Job, Opened, PassTurn, StepTurn, Took, Turn

if TYPE_CHECKING:
    from pllm.runtime.engine_core import EngineCore

__all__ = ["main"]

_PROMPT = 128  # tokens, as in W4
_T = TypeVar("_T")


def main() -> int:
    """Exit code 0, or that of the error that kept the artifact from opening, its message on standard error."""
    job = msgspec.json.decode(sys.stdin.buffer.readline(), type=Job)
    if job.version != VERSION:
        print(f"this checkout's worker speaks version {VERSION}, the gate {job.version}", file=sys.stderr)
        return 2
    try:
        _serve(job)
    except PllmError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    return 0


def _serve(job: Job) -> None:
    from pllm.runtime.artifact import Artifact  # noqa: PLC0415
    from pllm.runtime.bench.engine_run import EngineRun  # noqa: PLC0415
    from pllm.runtime.bench.processes import ProcessMemory  # noqa: PLC0415
    from pllm.runtime.bench.workload import Workload  # noqa: PLC0415
    from pllm.runtime.model_options import ModelOptions, open_model  # noqa: PLC0415

    ledger = Artifact.read(job.artifact).manifest.memory
    options = ModelOptions.of(
        "the gate",
        job.artifact,
        {
            "enable_prefix_caching": False,
            "memory": ledger.fixed + job.num_blocks * ledger.kv_block,
            "threads": job.threads,
        },
    )
    core, intake = open_model(options)
    wait = RunWait()
    try:
        ready, ready_wait = time.monotonic(), wait.seconds()
        length = min(_PROMPT, core.plan.max_model_len - 1)
        run = EngineRun.of(core.engine, Workload.uniform(1, length, 1, concurrency=1, vocab_size=intake.vocab_size))
        first_token, first_token_wait = time.monotonic(), wait.seconds()
        wait.close()
        core.wait_settled()
        _say(
            Opened(
                ready=ready,
                ready_wait=ready_wait,
                first_token=first_token,
                first_token_wait=first_token_wait,
                token_id=run.token_ids[0][0],
            )
        )
        while line := sys.stdin.buffer.readline():
            turn: Turn = msgspec.json.decode(line, type=Turn)
            _say(_step(core, turn) if isinstance(turn, StepTurn) else _pass(core, turn))
        _say(Closed(peak_rss=ProcessMemory.of_this().peak_rss))
    finally:
        core.close()


def _step(core: "EngineCore", turn: StepTurn) -> Took:
    from pllm.runtime.certificate import step_of  # noqa: PLC0415

    out = step_of(core.engine.config, turn.num_seqs, turn.num_tokens, turn.context)
    core.model_runner.execute(out)
    watch = _Watch()
    quiet = whole = 0.0
    while len(watch.seconds) < turn.least or (quiet < turn.seconds and whole < 2 * turn.seconds):
        watch(core.model_runner.execute, out)
        took = watch.seconds[-1]
        whole += took
        quiet += took if watch.waits[-1] <= WAIT_SHARE * took else 0.0
    return watch.took()


def _pass(core: "EngineCore", turn: PassTurn) -> Took:
    from pllm.runtime.bench.workload import Workload  # noqa: PLC0415
    from pllm.runtime.sampling_params import SamplingParams  # noqa: PLC0415
    from pllm.runtime.sequence import Request  # noqa: PLC0415

    requests = Workload.named(turn.workload, core.manifest.model.vocab_size).requests
    for i, wanted in enumerate(requests):
        params = SamplingParams(temperature=0.0, max_tokens=wanted.num_output_tokens, ignore_eos=True)
        request = Request(str(i), wanted.prompt_token_ids, params, eos_token_ids=(), arrival_time=time.monotonic())
        core.engine.submit(request)
    watch = _Watch()
    answered: set[str] = set()
    num_first = num_tokens = 0
    while core.engine.has_unfinished:
        for delta in watch(core.engine.step):
            answered.add(delta.request_id)
            num_tokens += len(delta.token_ids)
        num_first += len(answered) < len(requests)
    if num_tokens != sum(wanted.num_output_tokens for wanted in requests):
        raise MeasurementError(f"the measurement is void: {turn.workload} came to {num_tokens} tokens")
    return watch.took(num_first + 1)


class _Watch:
    """Calls that are timed, and how long this thread waited for a core during each."""

    def __init__(self) -> None:
        self.seconds: list[float] = []
        self.waits: list[float] = []
        self._wait = RunWait()

    def __call__(self, call: Callable[..., _T], *arguments: Any) -> _T:
        # Within the durations, so that no wait is taken off that is not in them; reading takes a few microseconds.
        began = time.perf_counter()
        waited = self._wait.seconds()
        result = call(*arguments)
        self.waits.append(self._wait.seconds() - waited)
        ended = time.perf_counter()
        self.seconds.append(ended - began)
        return result

    def took(self, num_first: int = 0) -> Took:
        self._wait.close()
        return Took(seconds=self.seconds, waits=self.waits, num_first=num_first)


def _say(answer: msgspec.Struct) -> None:
    sys.stdout.buffer.write(msgspec.json.encode(answer) + b"\n")
    sys.stdout.buffer.flush()


if __name__ == "__main__":
    sys.exit(main())

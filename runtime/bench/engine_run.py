"""A workload run on an engine in this process: token ids in, token ids out, no text and no HTTP."""

import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from pllm.runtime.bench.timing import RequestTiming
from pllm.runtime.bench.workload import Workload, WorkloadRequest
from pllm.runtime.engine import Engine
from pllm.runtime.errors import MeasurementError
from pllm.runtime.sampling_params import SamplingParams
from pllm.runtime.sequence import Request

__all__ = ["EngineRun"]


@dataclass(frozen=True, slots=True)
class EngineRun:
    """What one pass over a workload came to. ``began`` and ``ended`` are on the clock of the timings.

    ``kv_utilisation``: of each step that left blocks in use, the tokens held over the slots allocated,
    ``kv_tokens_held / (kv_blocks_used * block_size)``.
    """

    began: float
    ended: float
    timings: tuple[RequestTiming, ...]
    token_ids: tuple[tuple[int, ...], ...]
    num_steps: int
    num_preemptions: int
    kv_utilisation: tuple[float, ...]

    @property
    def makespan(self) -> float:
        """Seconds from the first request to the last token."""
        return self.ended - self.began

    @property
    def decode_rate(self) -> float | None:
        """Tokens a second once every sequence has had its first: those that came after that moment, over the time that
        they took. At batch 1 it is ``(output tokens - 1) / (latency - TTFT)``. None where no token came after it."""
        since = max(timing.chunks[0] for timing in self.timings)
        later = sum(when > since for timing in self.timings for when in timing.chunks)
        return later / (self.ended - since) if later else None

    @classmethod
    def of(cls, engine: Engine, workload: Workload, *, clock: Callable[[], float] = time.perf_counter) -> "EngineRun":
        """Run it: greedily, every request for as many tokens as it asks for.

        A request is submitted as soon as fewer than ``workload.concurrency`` are unfinished, and its clock starts then.
        Raises MeasurementError where the engine did something else than it was asked.
        """
        waiting = deque(enumerate(workload.requests))
        running: dict[str, _Answer] = {}
        answers: list[_Answer] = []
        utilisation: list[float] = []
        steps, preemptions, block_size = 0, engine.stats().num_preemptions, engine.config.block_size
        began = ended = clock()
        while waiting or running:
            while waiting and len(running) < workload.concurrency:
                number, wanted = waiting.popleft()
                answer = _Answer(wanted, clock())
                running[str(number)] = answer
                answers.append(answer)
                engine.submit(_request(str(number), wanted))
            deltas = engine.step()
            ended = clock()
            steps += 1
            stats = engine.stats()
            if stats.kv_blocks_used:
                utilisation.append(stats.kv_tokens_held / (stats.kv_blocks_used * block_size))
            for delta in deltas:
                answer = running[delta.request_id]
                answer.token_ids += delta.token_ids
                answer.chunks += [ended] * len(delta.token_ids)
                if delta.finish_reason is not None:
                    answer.check(delta.error)
                    del running[delta.request_id]
        return cls(
            began=began,
            ended=ended,
            timings=tuple(answer.timing() for answer in answers),
            token_ids=tuple(tuple(answer.token_ids) for answer in answers),
            num_steps=steps,
            num_preemptions=engine.stats().num_preemptions - preemptions,
            kv_utilisation=tuple(utilisation),
        )


class _Answer:
    """One request's tokens as they come."""

    def __init__(self, wanted: WorkloadRequest, sent: float) -> None:
        self._wanted = wanted
        self._sent = sent
        self.token_ids: list[int] = []
        self.chunks: list[float] = []

    def check(self, error: str | None) -> None:
        """Raises MeasurementError where the finished answer is not as long as it was to be."""
        wanted = self._wanted.num_output_tokens
        if error is not None or len(self.token_ids) != wanted:
            reason = error or f"{len(self.token_ids)} tokens came instead of {wanted}"
            raise MeasurementError(f"the measurement is void: a request failed ({reason})")

    def timing(self) -> RequestTiming:
        return RequestTiming(self._sent, tuple(self.chunks), len(self.token_ids))


def _request(request_id: str, wanted: WorkloadRequest) -> Request:
    """Greedy, and no token ends it but the last that was asked for."""
    params = SamplingParams(temperature=0.0, max_tokens=wanted.num_output_tokens, ignore_eos=True)
    return Request(request_id, wanted.prompt_token_ids, params, eos_token_ids=(), arrival_time=time.monotonic())

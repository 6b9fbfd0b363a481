"""The engine: three calls a step."""

import time
from collections.abc import Callable, Iterable
from concurrent.futures import Future
from typing import Protocol

from pllm.runtime.errors import QueueFullError, RequestError
from pllm.runtime.grammar_store import GrammarStore
from pllm.runtime.latencies import Latency
from pllm.runtime.prompt_pace import PromptPace
from pllm.runtime.scheduler import Scheduler
from pllm.runtime.scheduler_config import SchedulerConfig
from pllm.runtime.sequence import FinishReason, Request
from pllm.runtime.step import Grammar, SchedulerOutput, SchedulerStats, StepResult, TokenDelta
from pllm.runtime.step_times import StepTimes

__all__ = ["Engine", "ModelRunner"]

_PATIENCE = 0.01  # seconds for a grammar, where nothing else is to be done; commands wait as long


class ModelRunner(Protocol):
    """What turns a decision into tokens: stages inputs, runs the program, samples."""

    def execute(self, out: SchedulerOutput) -> StepResult: ...


class Engine:
    """Requests in, tokens out, a step at a time. One thread calls it.

    A request whose answers must have a form waits outside of the scheduler until its grammar is compiled: nobody waits
    behind it. Without ``grammars`` there are no such requests. ``clock`` gives seconds.
    """

    def __init__(
        self,
        scheduler: Scheduler,
        model_runner: ModelRunner,
        grammars: GrammarStore | None = None,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._scheduler = scheduler
        self._pace = PromptPace(scheduler.config.max_prefill_tokens or scheduler.config.max_num_batched_tokens)
        self._clock = clock
        self._times = StepTimes(())
        self._model_runner = model_runner
        self._grammars = grammars
        self._compiling: dict[str, tuple[Request, Future[Grammar]]] = {}

    @property
    def config(self) -> SchedulerConfig:
        """The limits, decided before the first request."""
        return self._scheduler.config

    @property
    def perf_ratio(self) -> float:
        """Of decoding steps: what they take, over what the build measured (`pllm.runtime.step_times`)."""
        return self._times.ratio

    def compare_with(self, rows: Iterable[Latency]) -> None:
        """From now on steps are compared with this latency table."""
        self._times = StepTimes(rows)

    @property
    def has_unfinished(self) -> bool:
        return self._scheduler.has_unfinished or bool(self._compiling)

    def check(self, request: Request) -> None:
        """Raises RequestError for a request that could not run even alone. Returns when its grammar is compiled."""
        self.config.check(request)
        if request.params.structured_outputs is not None:
            self._prepare(request).result()

    def submit(self, request: Request) -> None:
        """Queue a request. Raises RequestError where it could never run, QueueFullError where too many wait."""
        if request.params.structured_outputs is None:
            self._scheduler.add(request)
            return
        self.config.check(request)
        if request.request_id in self._compiling:
            raise RequestError(f"A request with the id {request.request_id!r} is not finished yet", param="request_id")
        if len(self._compiling) >= self.config.max_waiting:
            raise QueueFullError(f"{len(self._compiling)} requests wait for their grammars already: come back later")
        future = self._prepare(request)
        if future.done():
            self._scheduler.add(request, future.result())
        else:
            self._compiling[request.request_id] = (request, future)

    def abort(self, request_id: str, index: int | None = None) -> None:
        """End a request, or one of its n sequences, without a delta; an unknown id is passed over."""
        if index is None:
            self._compiling.pop(request_id, None)
        self._scheduler.abort(request_id, index)

    def step(self) -> list[TokenDelta]:
        """Run every sequence that fits, once.

        An error of one sequence is in its delta. One of the whole step is raised, and the engine is then unusable.
        """
        refused = self._take_compiled()
        out = self._scheduler.schedule(self._pace.num_tokens)
        if not out.rows:
            if self._compiling and not refused and self._grammars is not None:
                self._grammars.wait([future for _, future in self._compiling.values()], _PATIENCE)
            return refused
        began = self._clock()
        result = self._model_runner.execute(out)
        seconds = self._clock() - began
        self._pace.note(out.rows, seconds)
        self._times.note(out.rows, seconds)
        return refused + self._scheduler.update(out, result)

    def stats(self) -> SchedulerStats:
        return self._scheduler.stats()

    def reset_prefix_cache(self) -> None:
        """Forget all cached prefixes; running sequences keep what they hold."""
        self._scheduler.reset_prefix_cache()

    def _prepare(self, request: Request) -> Future[Grammar]:
        params = request.params.structured_outputs
        if self._grammars is None or params is None:
            raise RequestError("This engine has no structured outputs", param="structured_outputs")
        return self._grammars.prepare(params, request.eos_token_ids)

    def _take_compiled(self) -> list[TokenDelta]:
        """Queue the requests whose grammars are ready; the last deltas of those whose grammars are none."""
        refused: list[TokenDelta] = []
        for request_id, (request, future) in tuple(self._compiling.items()):
            if not future.done():
                continue
            try:
                self._scheduler.add(request, future.result())
            except QueueFullError:
                continue  # it was taken in: it waits here until there is room
            except RequestError as error:
                refused += [
                    TokenDelta(request_id, index, [], finish_reason=FinishReason.ERROR.value, error=error.message)
                    for index in range(request.params.n)
                ]
            del self._compiling[request_id]
        return refused

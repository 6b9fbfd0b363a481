"""The engine: three calls a step."""

from typing import Protocol

from pllm.runtime.scheduler import Scheduler
from pllm.runtime.scheduler_config import SchedulerConfig
from pllm.runtime.sequence import Request
from pllm.runtime.step import SchedulerOutput, SchedulerStats, StepResult, TokenDelta

__all__ = ["Engine", "ModelRunner"]


class ModelRunner(Protocol):
    """What turns a decision into tokens: stages inputs, runs the program, samples."""

    def execute(self, out: SchedulerOutput) -> StepResult: ...


class Engine:
    """Requests in, tokens out, a step at a time. One thread calls it."""

    def __init__(self, scheduler: Scheduler, model_runner: ModelRunner) -> None:
        self._scheduler = scheduler
        self._model_runner = model_runner

    @property
    def config(self) -> SchedulerConfig:
        """The limits, decided before the first request."""
        return self._scheduler.config

    @property
    def has_unfinished(self) -> bool:
        return self._scheduler.has_unfinished

    def submit(self, request: Request) -> None:
        """Queue a request. Raises RequestError where it could never run, QueueFullError where too many wait."""
        self._scheduler.add(request)

    def abort(self, request_id: str, index: int | None = None) -> None:
        """End a request, or one of its n sequences, without a delta; an unknown id is passed over."""
        self._scheduler.abort(request_id, index)

    def step(self) -> list[TokenDelta]:
        """Run every sequence that fits, once.

        An error of one sequence is in its delta. One of the whole step is raised, and the engine is then unusable.
        """
        out = self._scheduler.schedule()
        if not out.rows:
            return []
        result = self._model_runner.execute(out)
        return self._scheduler.update(out, result)

    def stats(self) -> SchedulerStats:
        return self._scheduler.stats()

    def reset_prefix_cache(self) -> None:
        """Forget all cached prefixes; running sequences keep what they hold."""
        self._scheduler.reset_prefix_cache()

"""An engine in this process that takes and gives text: what the library's forms have in common."""

from typing import Protocol

from pllm.runtime.interrupts import uninterrupted
from pllm.runtime.request_text import RequestText, TextDelta
from pllm.runtime.scheduler_config import SchedulerConfig
from pllm.runtime.sequence import Request
from pllm.runtime.step import SchedulerStats, TokenDelta

__all__ = ["TextEngine", "TokenEngine"]


class TokenEngine(Protocol):
    """What is needed of an engine (`pllm.runtime.engine.Engine`)."""

    @property
    def config(self) -> SchedulerConfig: ...

    @property
    def has_unfinished(self) -> bool: ...

    def check(self, request: Request) -> None: ...

    def submit(self, request: Request) -> None: ...

    def abort(self, request_id: str, index: int | None = None) -> None: ...

    def step(self) -> list[TokenDelta]: ...

    def stats(self) -> SchedulerStats: ...

    def reset_prefix_cache(self) -> None: ...


class TextEngine:
    """Requests in, text out, a step at a time. One thread calls it."""

    def __init__(self, engine: TokenEngine) -> None:
        self.engine = engine
        self._texts: dict[str, RequestText] = {}

    def check(self, text: RequestText) -> None:
        """Raises RequestError for a request that could not run even alone. Returns when its grammar is compiled."""
        self.engine.check(text.request)

    def submit(self, text: RequestText) -> None:
        """Queue a request. Raises QueueFullError where too many wait, RequestError where it could never run."""
        self.engine.submit(text.request)
        self._texts[text.request.request_id] = text

    def abort(self, request_id: str) -> None:
        """End a request; nothing more comes of it. One that has ended already is passed over."""
        if self._texts.pop(request_id, None) is not None:
            self.engine.abort(request_id)

    @property
    def num_unfinished(self) -> int:
        """Requests whose answers are not complete."""
        return len(self._texts)

    def step(self) -> list[tuple[RequestText, TextDelta]]:
        """One step of the engine: what it added, and to which request. Raises what makes the engine unusable.

        A Ctrl-C takes effect when the step is done.
        """
        with uninterrupted():
            return self._step()

    def _step(self) -> list[tuple[RequestText, TextDelta]]:
        news = []
        for delta in self.engine.step():
            text = self._texts.get(delta.request_id)
            change = None if text is None else text.feed(delta)
            if text is None or change is None:
                continue
            if change.ended_by_text:
                self.engine.abort(change.request_id, change.index)
            if text.finished:
                del self._texts[change.request_id]
            news.append((text, change))
        return news

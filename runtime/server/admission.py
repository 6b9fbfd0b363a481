"""How many requests may be inside at once. The rest is told to come back, and when."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from time import monotonic

from pllm.runtime.errors import QueueFullError, RequestError

__all__ = ["Admission"]

_SHORTEST_WAIT, _LONGEST_WAIT = 1, 120  # seconds: what OpenAI's clients accept as Retry-After
_FORGETTING = 0.1  # the weight of the latest interval in the mean


class Admission:
    """Counts requests from their arrival to their end: ``capacity`` of them run, and ``max_queue`` more may wait."""

    def __init__(self, *, capacity: int, max_queue: int) -> None:
        self._limit = capacity + max_queue
        self._text = f"{capacity} running and {max_queue} waiting"
        self._inside = 0
        self._mean_interval = 0.0  # seconds between two requests that end
        self._last_end: float | None = None

    def check_room(self) -> None:
        """Raises QueueFullError if nothing more fits, before any work is done for the request."""
        if self._inside >= self._limit:
            raise QueueFullError(
                f"The server is full ({self._text}). Try again in {self.retry_after()} s, or raise --max-queue."
            )

    @contextmanager
    def admit(self, count: int) -> Iterator[None]:
        """Holds room for ``count`` prompts. Raises QueueFullError, and RequestError where they can never fit."""
        if count > self._limit:
            raise RequestError(
                f"{count} prompts in one request: this server holds {self._limit} ({self._text}). Send fewer at once.",
                param="prompt",
                code="too_many_prompts",
            )
        if self._inside + count > self._limit:
            raise QueueFullError(f"The server is full ({self._text}). Try again in {self.retry_after()} s.")
        self._inside += count
        try:
            yield
        finally:
            self._inside -= count
            self._note_end(count)

    def retry_after(self) -> int:
        """Seconds until a place should be free, from how fast requests have been ending: 1 to 120."""
        seconds = math.ceil(self._mean_interval * max(self._inside - self._limit + 1, 1))
        return max(_SHORTEST_WAIT, min(_LONGEST_WAIT, seconds))

    def _note_end(self, count: int) -> None:
        now = monotonic()
        if self._last_end is not None:
            interval = (now - self._last_end) / count
            self._mean_interval += _FORGETTING * (interval - self._mean_interval)
        self._last_end = now

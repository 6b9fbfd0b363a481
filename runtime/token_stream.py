"""Tokens on their way from the engine to whoever waits for them, a fair share of the event loop at a time."""

import asyncio
from collections import deque
from collections.abc import Sequence
from typing import Final, Protocol

from pllm.runtime.errors import PllmError
from pllm.runtime.sequence import Request
from pllm.runtime.step import TokenDelta

__all__ = ["EngineSide", "TokenStream", "Turns"]

DELTAS_A_TURN: Final = 32
"""Deltas that one turn of the event loop hands out. Each costs its stream some 30 to 100 microseconds."""


class EngineSide(Protocol):
    """Where a stream's requests run."""

    def abort(self, request_id: str, index: int | None = None) -> None: ...

    def forget(self, request_id: str) -> None: ...


class Turns:
    """Streams that have something to hand out take turns, so that everybody else on the event loop comes to his own.

    Without them one message of the engine would wake every stream at once, and a backlog would be worked off in a
    single turn of the loop: seconds, for which a new request would not even be read.
    """

    def __init__(self) -> None:
        self._queue: deque[TokenStream] = deque()
        self._goes_on = False

    def add(self, stream: "TokenStream") -> None:
        """The stream comes to its turn, once."""
        self._queue.append(stream)
        if not self._goes_on:
            self._goes_on = True
            asyncio.get_running_loop().call_soon(self._take_turn)

    def _take_turn(self) -> None:
        room = DELTAS_A_TURN
        while self._queue and room > 0:
            room -= self._queue.popleft().come_to_turn()
        self._goes_on = bool(self._queue)
        if self._goes_on:
            asyncio.get_running_loop().call_soon(self._take_turn)


class TokenStream:
    """The tokens of the requests of one API call. What comes while nobody takes it is kept.

    So a connection whose socket is busy gets its tokens in fewer, larger pieces, and holds at most the tokens it may
    generate.
    """

    def __init__(self, engine: EngineSide, turns: Turns, requests: Sequence[Request]) -> None:
        self._engine = engine
        self._turns = turns
        self._unfinished = {request.request_id: set(range(request.params.n)) for request in requests}
        self._pending: list[TokenDelta] = []
        self._error: PllmError | None = None
        self._waiter: asyncio.Future[None] | None = None
        self._in_turns = False

    @property
    def finished(self) -> bool:
        """Whether all sequences of all its requests have ended (what they said may still be waiting to be taken)."""
        return not self._unfinished

    async def take(self) -> list[TokenDelta]:
        """What has come since the last call, in order: at least one delta, and at most as many as a turn hands out.

        Returns when it is this stream's turn. Raises what ended the stream when nothing is left.
        """
        while True:
            if self._pending:
                self._ask_for_turn()
            elif self._error is not None:
                raise self._error
            self._waiter = asyncio.get_running_loop().create_future()
            try:
                await self._waiter
            finally:
                self._waiter = None
            if self._pending:
                taken, self._pending = self._pending[:DELTAS_A_TURN], self._pending[DELTAS_A_TURN:]
                return taken

    def come_to_turn(self) -> int:
        """Lets `take` return. How many deltas that is; none where nobody is waiting."""
        self._in_turns = False
        if self._waiter is None or self._waiter.done():
            return 0
        self._waiter.set_result(None)
        return min(len(self._pending), DELTAS_A_TURN)

    def push(self, delta: TokenDelta) -> None:
        """One delta from the engine; a sequence that was aborted here has nothing more to say."""
        indices = self._unfinished.get(delta.request_id)
        if indices is None or delta.index not in indices:
            return
        self._pending.append(delta)
        if delta.finish_reason is not None:
            self._end(delta.request_id, delta.index)
        if self._waiter is not None:
            self._ask_for_turn()

    def fail(self, error: PllmError, *, at_once: bool = False) -> None:
        """Ends the stream: what has come can still be taken, unless ``at_once``; then ``error`` is raised."""
        self._error = error
        if at_once:
            self._pending.clear()
        if self._waiter is not None and not self._waiter.done() and not self._pending:
            self._waiter.set_result(None)

    def end_sequence(self, request_id: str, index: int) -> None:
        """Stops one sequence: its text is complete (a stop string), whatever the engine would add."""
        if index in self._unfinished.get(request_id, ()):
            self._end(request_id, index)
            self._engine.abort(request_id, index)

    def close(self) -> None:
        """Aborts whatever has not finished. The engine frees its blocks before its next step."""
        for request_id in list(self._unfinished):
            self._engine.forget(request_id)
            self._engine.abort(request_id)
        self._unfinished.clear()

    def _end(self, request_id: str, index: int) -> None:
        indices = self._unfinished[request_id]
        indices.discard(index)
        if not indices:
            del self._unfinished[request_id]
            self._engine.forget(request_id)

    def _ask_for_turn(self) -> None:
        if not self._in_turns:
            self._in_turns = True
            self._turns.add(self)

"""The API process's side of the engine: requests out, tokens in, whichever engine process serves at the moment.

`EngineClient` outlives engine processes: the supervisor attaches one after another to it. A request lives in one of
them only, and fails with it.
"""

import asyncio
import socket
from collections.abc import Callable, Sequence
from typing import cast

from pllm.runtime.errors import EngineDeadError, PllmError, QueueFullError, RequestError
from pllm.runtime.messages import (
    Abort,
    Command,
    EngineInfo,
    Event,
    Failed,
    FrameReader,
    Ready,
    Refused,
    ResetPrefixCache,
    Step,
    Submit,
    decode_event,
    encode_frame,
)
from pllm.runtime.sequence import Request
from pllm.runtime.step import SchedulerStats, TokenDelta

__all__ = ["EngineClient", "TokenStream"]


class TokenStream:
    """The tokens of the requests of one API call. What comes while nobody takes it is kept, and taken at once.

    So a connection whose socket is busy gets its tokens in fewer, larger pieces, and holds at most the tokens it may
    generate.
    """

    def __init__(self, client: "EngineClient", requests: Sequence[Request]) -> None:
        self._client = client
        self._unfinished = {request.request_id: set(range(request.params.n)) for request in requests}
        self._pending: list[TokenDelta] = []
        self._error: PllmError | None = None
        self._waiter: asyncio.Future[None] | None = None

    @property
    def finished(self) -> bool:
        """Whether all sequences of all its requests have ended (what they said may still be waiting to be taken)."""
        return not self._unfinished

    async def take(self) -> list[TokenDelta]:
        """Everything that has come since the last call, at least one delta. Raises what ended the stream otherwise."""
        while not self._pending:
            if self._error is not None:
                raise self._error
            self._waiter = asyncio.get_running_loop().create_future()
            try:
                await self._waiter
            finally:
                self._waiter = None
        pending, self._pending = self._pending, []
        return pending

    def push(self, delta: TokenDelta) -> None:
        """One delta from the engine; a sequence that was aborted here has nothing more to say."""
        indices = self._unfinished.get(delta.request_id)
        if indices is None or delta.index not in indices:
            return
        self._pending.append(delta)
        if delta.finish_reason is not None:
            self._end(delta.request_id, delta.index)
        self._wake()

    def fail(self, error: PllmError) -> None:
        """Ends the stream: what has come can still be taken, then ``error`` is raised."""
        self._error = error
        self._wake()

    def end_sequence(self, request_id: str, index: int) -> None:
        """Stops one sequence: its text is complete (a stop string), whatever the engine would add."""
        if index in self._unfinished.get(request_id, ()):
            self._end(request_id, index)
            self._client.abort(request_id, index)

    def close(self) -> None:
        """Aborts whatever has not finished. The engine frees its blocks before its next step."""
        for request_id in list(self._unfinished):
            self._client.forget(request_id)
            self._client.abort(request_id)
        self._unfinished.clear()

    def _end(self, request_id: str, index: int) -> None:
        indices = self._unfinished[request_id]
        indices.discard(index)
        if not indices:
            del self._unfinished[request_id]
            self._client.forget(request_id)

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)


class EngineClient:
    """Submits, aborts, and hands what comes back to the stream it belongs to. All of it on one event loop.

    ``on_ready`` is called each time an engine has been opened; ``on_step``, once set, after each of its steps.
    """

    def __init__(self, on_ready: Callable[[EngineInfo], None]) -> None:
        self.info: EngineInfo | None = None
        self.stats: SchedulerStats | None = None
        self.failure: Failed | None = None
        self.num_messages = 0
        self._on_ready = on_ready
        self.on_step: Callable[[Step], None] | None = None
        self._streams: dict[str, TokenStream] = {}
        self._connection: _Connection | None = None
        self._ready = False

    @property
    def ready(self) -> bool:
        """Whether an engine is open and its process connected."""
        return self._ready

    @property
    def num_requests(self) -> int:
        """Requests that the engine has been given and has not finished."""
        return len(self._streams)

    async def attach(self, end: socket.socket, on_lost: Callable[[], None]) -> None:
        """Serves from the engine process at the other end. ``on_lost`` is called once, when the socket ends."""
        self.failure = None
        loop = asyncio.get_running_loop()
        _, self._connection = await loop.create_unix_connection(lambda: _Connection(self._receive, on_lost), sock=end)

    def detach(self, reason: str) -> None:
        """The engine has gone: fails everything that it had, and refuses new requests until the next is ready."""
        self._ready = False
        self.stats = None
        if self._connection is not None:
            self._connection.close()
            self._connection = None
        streams, self._streams = set(self._streams.values()), {}
        for stream in streams:
            stream.fail(EngineDeadError(reason))

    def submit(self, requests: Sequence[Request]) -> TokenStream:
        """Gives the engine the requests of one API call. Raises EngineDeadError when there is no engine."""
        if not self._ready:
            raise EngineDeadError("The engine is not ready. Try again in a few seconds.")
        stream = TokenStream(self, requests)
        for request in requests:
            self._streams[request.request_id] = stream
            self._send(Submit(request))
        return stream

    def abort(self, request_id: str, index: int | None = None) -> None:
        """Drops a request or one of its sequences. Unknown ids are no error."""
        self._send(Abort(request_id, index))

    def forget(self, request_id: str) -> None:
        """Nothing more is expected for this request."""
        self._streams.pop(request_id, None)

    def reset_prefix_cache(self) -> None:
        """Forgets all cached prefixes that nobody uses."""
        self._send(ResetPrefixCache())

    def _send(self, command: Command) -> None:
        if self._connection is not None:
            self._connection.send(command)

    def _receive(self, event: Event) -> None:
        self.num_messages += 1
        match event:
            case Step(deltas, stats):
                self.stats = stats
                streams = self._streams
                for delta in deltas:
                    stream = streams.get(delta.request_id)
                    if stream is not None:
                        stream.push(delta)
                if self.on_step is not None:
                    self.on_step(event)
            case Refused(request_id):
                refused = self._streams.pop(request_id, None)
                if refused is not None:
                    refused.fail(_error_of(event))
            case Ready(info, stats):
                self.info, self.stats = info, stats
                self._ready = True
                self._on_ready(info)
            case Failed():
                self.failure = event


def _error_of(refused: Refused) -> PllmError:
    if refused.queue_full:
        return QueueFullError(refused.message)
    return RequestError(refused.message, param=refused.param, code=refused.code)


class _Connection(asyncio.Protocol):
    """The socket to one engine process, as events."""

    def __init__(self, receive: Callable[[Event], None], on_lost: Callable[[], None]) -> None:
        self._receive = receive
        self._on_lost = on_lost
        self._frames = FrameReader()
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is one in all but name

    def data_received(self, data: bytes) -> None:
        for frame in self._frames.feed(data):
            self._receive(decode_event(frame))

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002  (asyncio's signature)
        self._on_lost()

    def send(self, command: Command) -> None:
        if self._transport is not None:
            self._transport.write(encode_frame(command))

    def close(self) -> None:
        if self._transport is not None:
            self._transport.abort()

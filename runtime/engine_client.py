"""The API process's side of the engine: requests out, tokens in, whichever engine process serves at the moment.

`EngineClient` outlives engine processes: the supervisor attaches one after another to it. A request lives in one of
them only, and fails with it.
"""

import asyncio
import socket
from collections import deque
from collections.abc import Callable, Sequence
from math import nan
from typing import Final, cast

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
from pllm.runtime.step import SchedulerStats
from pllm.runtime.token_stream import TokenStream, Turns

__all__ = ["EngineClient"]

_BYTES_A_TURN: Final = 32 << 10
"""Of the engine's messages, handled in one turn of the event loop: about a millisecond's work."""


class EngineClient:
    """Submits, aborts, and hands what comes back to the stream it belongs to. All of it on one event loop.

    ``on_ready`` is called each time an engine has been opened; ``on_step``, once set, after each of its steps.
    """

    def __init__(self, on_ready: Callable[[EngineInfo], None]) -> None:
        self.info: EngineInfo | None = None
        self.stats: SchedulerStats | None = None
        self.perf_ratio = nan
        self.failure: Failed | None = None
        self.num_messages = 0
        self._on_ready = on_ready
        self.on_step: Callable[[Step], None] | None = None
        self._streams: dict[str, TokenStream] = {}
        self._turns = Turns()
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
        self.stats, self.perf_ratio = None, nan
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
        stream = TokenStream(self, self._turns, requests)
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
            case Step(deltas, stats, perf_ratio):
                self.stats, self.perf_ratio = stats, perf_ratio
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
    """The socket to one engine process, as events. What comes faster than it is handled waits in the socket."""

    def __init__(self, receive: Callable[[Event], None], on_lost: Callable[[], None]) -> None:
        self._receive = receive
        self._on_lost = on_lost
        self._frames = FrameReader()
        self._waiting: deque[bytes] = deque()  # frames that have been read and not handled
        self._paused = False
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is one in all but name

    def data_received(self, data: bytes) -> None:
        self._waiting.extend(self._frames.feed(data))
        if not self._paused:
            self._handle(_BYTES_A_TURN)

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002  (asyncio's signature)
        while self._waiting:
            self._receive(decode_event(self._waiting.popleft()))
        self._on_lost()

    def send(self, command: Command) -> None:
        if self._transport is not None:
            self._transport.write(encode_frame(command))

    def close(self) -> None:
        self._waiting.clear()
        if self._transport is not None:
            self._transport.abort()

    def _handle(self, room: int) -> None:
        while self._waiting and room > 0:
            frame = self._waiting.popleft()
            self._receive(decode_event(frame))
            room -= len(frame)
        self._pause(bool(self._waiting))

    def _pause(self, wanted: bool) -> None:
        """Reads nothing more until what waits is handled, in the loop's next turns: one read follows another otherwise,
        for as long as there is anything to read."""
        assert self._transport is not None
        if wanted:
            asyncio.get_running_loop().call_soon(self._handle, _BYTES_A_TURN)
        if wanted != self._paused and not self._transport.is_closing():
            self._paused = wanted
            (self._transport.pause_reading if wanted else self._transport.resume_reading)()

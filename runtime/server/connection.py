"""One client's connection: uvicorn's HTTP/1.1 protocol, with an end to everything a client could leave open."""

import asyncio
import os
from http import HTTPStatus
from typing import Any

import msgspec
from uvicorn.config import Config
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
from uvicorn.server import ServerState

from pllm.runtime.server.protocol.errors import HttpError, error_answer
from pllm.runtime.server.settings import EdgeLimits

__all__ = ["Connection"]

_LINGER = 2.0  # seconds for a refused client to hang up


class Connection(HttpToolsProtocol):
    """Limits that uvicorn leaves open: slow or huge headers, a socket that is never read, a body that never ends.

    What is no HTTP is answered in the API's error shape and closed.
    """

    def __init__(
        self,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
        *,
        limits: EdgeLimits,
    ) -> None:
        super().__init__(config, server_state, app_state, _loop)
        self._limits = limits
        self._in_headers = True
        self._header_bytes = 0
        self._began = False  # a message, in the data at hand
        self._refusal: HttpError | None = None
        self._refused = False
        self._deadline: asyncio.TimerHandle | None = None  # for headers, or for the rest of a body nobody waits for
        self._stalled: asyncio.TimerHandle | None = None  # since the socket was last found full

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as in uvicorn
        super().connection_made(transport)
        self._set_deadline(self._limits.client_timeout)

    def connection_lost(self, exc: Exception | None) -> None:
        self._set_deadline(None)
        self.resume_writing()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self._refused:
            return  # said no already: the rest is only read so that the client gets to read the answer
        self._began = False
        super().data_received(data)
        if self._in_headers and not self._refused:
            # Of headers that are not complete the parser says nothing. Where they began in this data, others may have
            # ended in it: what is theirs stands after the last empty line.
            ended = data.rfind(b"\r\n\r\n") if self._began else -1
            self._count_header(len(data) - (0 if ended < 0 else ended + 4))
            if self._refusal is not None:
                self.send_400_response(self._refusal.message)

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._began = True
        self._in_headers, self._header_bytes = True, 0
        self._set_deadline(self._limits.client_timeout)

    def on_header(self, name: bytes, value: bytes) -> None:
        self._count_header(len(name) + len(value))
        if self._refusal is not None:
            raise self._refusal  # the parser stops, and send_400_response answers
        super().on_header(name, value)

    def on_headers_complete(self) -> None:
        self._in_headers = False
        self._set_deadline(None)
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        super().on_message_complete()
        self._set_deadline(None)

    def on_response_complete(self) -> None:
        super().on_response_complete()
        # Answered before its body had come (413, 401): the rest is read and dropped, so that the client can read the
        # answer, but not for ever.
        if self.cycle.more_body and not self._in_headers:
            self._set_deadline(self._limits.client_timeout)

    def pause_writing(self) -> None:
        super().pause_writing()
        if self._stalled is None:
            self._stalled = self.loop.call_later(self._limits.client_timeout, self.transport.abort)

    def resume_writing(self) -> None:
        if self._stalled is not None:
            self._stalled.cancel()
            self._stalled = None
        super().resume_writing()

    def timeout_keep_alive_handler(self) -> None:
        super().timeout_keep_alive_handler()
        # Closing waits for what is still unsent; a client that reads nothing would keep it waiting.
        self._set_deadline(self._limits.client_timeout)

    def send_400_response(self, msg: str) -> None:
        """Answers what uvicorn could not parse, or what is over a limit, and closes."""
        self.pipeline.clear()
        cycle = self.cycle
        if cycle is not None and not cycle.response_complete:
            if cycle.response_started:
                self.transport.abort()  # there is no place for a second answer amid the first
                return
            cycle.disconnected = True  # what the request would still say has no place after this answer
            cycle.message_event.set()
        error = self._refusal or HttpError(400, f"{msg.rstrip('.')}. This is an HTTP/1.1 server.")
        status, answer = error_answer(error)
        body = msgspec.json.encode(answer)
        lines = [
            f"HTTP/1.1 {status} {HTTPStatus(status).phrase}",
            "content-type: application/json",
            f"content-length: {len(body)}",
            f"x-request-id: {os.urandom(12).hex()}",
            "connection: close",
        ]
        self.transport.write("\r\n".join(lines).encode() + b"\r\n\r\n" + body)
        # Closing at once, with bytes unread, would reset the connection and take the answer with it.
        self._refused = True
        if self.transport.can_write_eof():
            self.transport.write_eof()
        else:  # TLS knows no half of a connection
            self.transport.close()
        self._set_deadline(_LINGER)

    def _count_header(self, size: int) -> None:
        self._header_bytes += size
        if self._header_bytes > self._limits.max_header_bytes and self._refusal is None:
            self._refusal = HttpError(
                431,
                f"The request's headers are larger than {self._limits.max_header_bytes} bytes.",
                code="headers_too_large",
            )

    def _set_deadline(self, seconds: float | None) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
        self._deadline = None if seconds is None else self.loop.call_later(seconds, self.transport.abort)

"""Request bodies, within limits that hold for each and for all together, and the moment a client goes away."""

import asyncio
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager

from starlette.types import Receive

from pllm.runtime.errors import QueueFullError
from pllm.runtime.server.generation import ClientGoneError
from pllm.runtime.server.protocol.errors import HttpError
from pllm.runtime.server.settings import EdgeLimits

__all__ = ["BodyReader", "until_gone"]


class BodyReader:
    """Reads bodies. What all clients together have sent and is not yet turned into prompts stays within a bound too."""

    def __init__(self, limits: EdgeLimits) -> None:
        self._limits = limits
        self._held = 0  # bytes

    @asynccontextmanager
    async def read(self, headers: Iterable[tuple[bytes, bytes]], receive: Receive) -> AsyncIterator[bytes]:
        """The whole body, counted as held until the context is left.

        Raises HttpError 413 (before it comes, where its length is told), 408 for one that does not arrive in time, 415
        for one that claims to be something else than JSON; QueueFullError while others hold too much; ClientGoneError.
        """
        self._check_headers(headers)
        body = bytearray()
        try:
            await self._fill(body, receive)
            yield bytes(body)
        finally:
            self._held -= len(body)

    async def _fill(self, body: bytearray, receive: Receive) -> None:
        limits = self._limits
        more = True
        while more:
            try:
                async with asyncio.timeout(limits.client_timeout):
                    message = await receive()
            except TimeoutError:
                seconds = limits.client_timeout
                raise HttpError(408, f"Nothing more of the request body came for {seconds:g} s.") from None
            if message["type"] == "http.disconnect":
                raise ClientGoneError
            more = message["more_body"]
            body += message["body"]
            self._held += len(message["body"])
            if len(body) > limits.max_body_bytes:
                raise self._too_large()
            if self._held > limits.max_held_bytes:
                raise QueueFullError("The server is reading too many large requests at once. Try again soon.")

    def _check_headers(self, headers: Iterable[tuple[bytes, bytes]]) -> None:
        for name, value in headers:
            if name == b"content-length" and (not value.isdigit() or int(value) > self._limits.max_body_bytes):
                raise self._too_large()
            if name == b"content-type" and b"json" not in value.lower():
                raise HttpError(415, "The request body must be JSON: send the header 'Content-Type: application/json'.")
            if name == b"content-encoding" and value.strip().lower() not in (b"", b"identity"):
                raise HttpError(
                    415, "The request body must not be compressed: leave out the header 'Content-Encoding'."
                )

    def _too_large(self) -> HttpError:
        limit = self._limits.max_body_bytes
        message = f"The request body is larger than {limit} bytes, the limit of this server (--max-body)."
        return HttpError(413, message, code="body_too_large")


async def until_gone(receive: Receive) -> None:
    """Returns when the client has closed its connection (or its answer is complete)."""
    while (await receive())["type"] != "http.disconnect":
        pass

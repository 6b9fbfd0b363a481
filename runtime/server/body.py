"""A request's body, within its limits, and the moment its client goes away."""

import asyncio
from collections.abc import Iterable

from starlette.types import Receive

from pllm.runtime.server.generation import ClientGoneError
from pllm.runtime.server.protocol.errors import HttpError
from pllm.runtime.server.settings import EdgeLimits

__all__ = ["read_body", "until_gone"]


async def read_body(headers: Iterable[tuple[bytes, bytes]], receive: Receive, limits: EdgeLimits) -> bytes:
    """The whole body. Raises HttpError 413 (before it comes, where its length is told), 408 for one that does not
    arrive in time, 415 for one that claims to be something else than JSON; and ClientGoneError.
    """
    for name, value in headers:
        if name == b"content-length" and (not value.isdigit() or int(value) > limits.max_body_bytes):
            raise _too_large(limits)
        if name == b"content-type" and b"json" not in value.lower():
            raise HttpError(415, "The request body must be JSON: send the header 'Content-Type: application/json'.")
    chunks: list[bytes] = []
    size = 0
    try:
        while True:
            async with asyncio.timeout(limits.client_timeout):
                message = await receive()
            if message["type"] == "http.disconnect":
                raise ClientGoneError
            chunks.append(message["body"])
            size += len(message["body"])
            if size > limits.max_body_bytes:
                raise _too_large(limits)
            if not message["more_body"]:
                return b"".join(chunks)
    except TimeoutError:
        raise HttpError(408, f"Nothing more of the request body came for {limits.client_timeout:g} s.") from None


async def until_gone(receive: Receive) -> None:
    """Returns when the client has closed its connection (or its answer is complete)."""
    while (await receive())["type"] != "http.disconnect":
        pass


def _too_large(limits: EdgeLimits) -> HttpError:
    message = f"The request body is larger than {limits.max_body_bytes} bytes, the limit of this server (--max-body)."
    return HttpError(413, message, code="body_too_large")

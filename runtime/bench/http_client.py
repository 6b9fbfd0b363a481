"""A small HTTP/1.1 client on asyncio's streams: what a benchmark needs, at as little of the server's cores as it can.

One connection a request. Everything that a server could send without end is bounded.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from ipaddress import ip_address
from urllib.parse import urlsplit

import msgspec

from pllm.runtime.errors import PllmError, UserInputError

__all__ = ["Endpoint", "HttpAnswer", "HttpError", "request"]

_MAX_LINE = 64 << 10
_MAX_HEADERS = 256
_MAX_BODY = 64 << 20
_READ = 64 << 10


class HttpError(PllmError):
    """The server is not there, or what it sends is no HTTP that this client reads."""


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Where a server listens, and the bearer key that it asks for."""

    host: str
    port: int
    api_key: str | None = None

    @classmethod
    def parse(cls, url: str, *, api_key: str | None = None, allow_remote: bool = False) -> "Endpoint":
        """``http://HOST[:PORT]``; a path such as ``/v1`` is passed over.

        Raises UserInputError for anything else, and, unless ``allow_remote``, for a host that is not this machine: a
        benchmark sent to the wrong address is an attack.
        """
        try:
            parts = urlsplit(url)
            host, port = parts.hostname, parts.port or 80
        except ValueError as error:
            raise UserInputError(f"--url {url}: {error}") from None
        if parts.scheme != "http" or not host:
            raise UserInputError(f"--url {url}: give http://HOST:PORT (TLS is not spoken here)")
        if not allow_remote and not _is_loopback(host):
            raise UserInputError(f"--url {url} is not this machine: add --allow-remote if that server is yours to load")
        return cls(host, port, api_key)

    @property
    def authority(self) -> str:
        """As the ``Host`` header has it."""
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


class HttpAnswer:
    """A response whose head has come. ``pieces`` yields its body as it arrives, once."""

    def __init__(self, status: int, headers: Mapping[str, str], reader: asyncio.StreamReader) -> None:
        self.status = status
        self.headers = headers
        self._reader = reader

    async def body(self) -> bytes:
        """All of it. Raises HttpError where it is too long or breaks off."""
        return b"".join([piece async for piece in self.pieces()])

    async def pieces(self) -> AsyncIterator[bytes]:
        """The body in the pieces in which the network and the server's chunks cut it. Raises HttpError."""
        total = 0
        try:
            async for piece in self._framed():
                total += len(piece)
                if total > _MAX_BODY:
                    raise HttpError(f"the server's answer has more than {_MAX_BODY} bytes")
                yield piece
        except (asyncio.IncompleteReadError, ConnectionError) as error:
            raise HttpError("the server closed the connection in the middle of an answer") from error
        except ValueError as error:
            raise HttpError(f"the server's answer is not framed as HTTP/1.1 asks: {error}") from error

    async def _framed(self) -> AsyncIterator[bytes]:
        reader = self._reader
        if self.headers.get("transfer-encoding", "").lower() == "chunked":
            while size := int((await reader.readuntil(b"\r\n")).partition(b";")[0], 16):
                yield await reader.readexactly(min(size, _MAX_BODY + 1))
                await reader.readexactly(2)
            while await reader.readuntil(b"\r\n") != b"\r\n":  # trailers
                pass
        elif "content-length" in self.headers:
            left = int(self.headers["content-length"])
            while left > 0:
                piece = await reader.read(min(left, _READ))
                if not piece:
                    raise asyncio.IncompleteReadError(b"", left)
                left -= len(piece)
                yield piece
        else:
            while piece := await reader.read(_READ):
                yield piece


@contextlib.asynccontextmanager
async def request(endpoint: Endpoint, method: str, path: str, body: object = None) -> AsyncIterator[HttpAnswer]:
    """Send a request, with ``body`` as JSON where it is not None; the answer's head is there when this yields.

    Raises HttpError. The connection is closed when the block is left, which also ends what the server still does.
    """
    content = b"" if body is None else msgspec.json.encode(body)
    lines = [
        f"{method} {path} HTTP/1.1",
        f"Host: {endpoint.authority}",
        "Connection: close",
        "Accept: */*",
        f"Content-Length: {len(content)}",
        "Content-Type: application/json",
    ]
    if endpoint.api_key:
        lines.append(f"Authorization: Bearer {endpoint.api_key}")
    try:
        reader, writer = await asyncio.open_connection(endpoint.host, endpoint.port, limit=_MAX_LINE)
    except OSError as error:
        raise HttpError(f"no server answers at {endpoint.authority}: {error.strerror or error}") from error
    try:
        writer.write("\r\n".join([*lines, "", ""]).encode("latin-1") + content)
        yield await _head(reader)
    finally:
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()


async def _head(reader: asyncio.StreamReader) -> HttpAnswer:
    try:
        version, _, status = (await reader.readuntil(b"\r\n")).decode("latin-1").strip().partition(" ")
        headers: dict[str, str] = {}
        while (line := await reader.readuntil(b"\r\n")) != b"\r\n":
            name, _, value = line.decode("latin-1").partition(":")
            headers[name.strip().lower()] = value.strip()
            if len(headers) > _MAX_HEADERS:
                raise HttpError(f"the server sends more than {_MAX_HEADERS} headers")
        if not version.startswith("HTTP/1."):
            raise HttpError(f"the server does not speak HTTP/1.1: its first line begins with {version[:20]!r}")
        return HttpAnswer(int(status[:3]), headers, reader)
    except asyncio.LimitOverrunError as error:
        raise HttpError(f"the server sends a line of more than {_MAX_LINE} bytes") from error
    except (asyncio.IncompleteReadError, ConnectionError) as error:
        raise HttpError("the server closed the connection without an answer") from error
    except ValueError as error:
        raise HttpError(f"the server's answer begins with no HTTP status: {error}") from error


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ip_address(host.partition("%")[0]).is_loopback
    except ValueError:
        return False

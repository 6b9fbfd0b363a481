"""The client against servers that say exactly what a test wants, byte for byte."""

import asyncio
from collections.abc import Callable

import pytest

from pllm.runtime.bench.completion_stream import complete, served_model
from pllm.runtime.bench.http_client import Endpoint, HttpError, request
from pllm.runtime.bench.timing import RequestTiming
from pllm.runtime.bench.workload import WorkloadRequest
from pllm.runtime.errors import UserInputError

WANTED = WorkloadRequest((1, 2, 3), 2)
HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n"


def chunked(*pieces: bytes) -> bytes:
    framed = b"".join(b"%x\r\n%s\r\n" % (len(piece), piece) for piece in pieces)
    return HEAD + b"Transfer-Encoding: chunked\r\n\r\n" + framed + b"0\r\n\r\n"


def event(text: str, count: int) -> bytes:
    return b'data: {"choices":[{"text":"%s"}],"usage":{"completion_tokens":%d}}\n\n' % (text.encode(), count)


USAGE = b'data: {"choices":[],"usage":{"completion_tokens":2}}\n\n'
DONE = b"data: [DONE]\n\n"
ERROR = b'data: {"error":{"message":"the engine has stopped"}}\n\n'


class FakeServer:
    """Answers every connection with the same bytes, cut into pieces of ``cut`` bytes, and closes it."""

    def __init__(self, answer: bytes, cut: int = 1 << 20) -> None:
        self._answer, self._cut = answer, cut
        self.heard = b""

    async def __aenter__(self) -> "FakeServer":
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.endpoint = Endpoint("127.0.0.1", self._server.sockets[0].getsockname()[1], "secret")
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        await self._server.wait_closed()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.heard = await reader.readuntil(b"\r\n\r\n")
        length = next(line for line in self.heard.split(b"\r\n") if line.startswith(b"Content-Length: "))
        self.heard += await reader.readexactly(int(length.split()[1]))
        for start in range(0, len(self._answer), self._cut):
            writer.write(self._answer[start : start + self._cut])
            await writer.drain()
            await asyncio.sleep(0)
        writer.close()


def ask(answer: bytes, cut: int = 1 << 20) -> RequestTiming:
    async def main() -> RequestTiming:
        async with FakeServer(answer, cut) as server:
            ticks = iter(range(1000))
            return await complete(server.endpoint, "m", WANTED, clock=lambda: float(next(ticks)))

    return asyncio.run(main())


def fetch(answer: bytes, cut: int = 1 << 20) -> tuple[int, bytes]:
    async def main() -> tuple[int, bytes]:
        async with FakeServer(answer, cut) as server, request(server.endpoint, "GET", "/") as found:
            return found.status, await found.body()

    return asyncio.run(main())


@pytest.mark.parametrize("cut", [1, 7, 1 << 20])
@pytest.mark.parametrize(
    "answer",
    [
        HEAD + b"Content-Length: 5\r\n\r\nhello",
        HEAD + b"\r\nhello",
        chunked(b"he", b"llo"),
        HEAD + b"transfer-encoding: CHUNKED\r\n\r\n5;name=value\r\nhello\r\n0\r\ntrailer: x\r\n\r\n",
    ],
    ids=["length", "until the end", "chunked", "extensions and trailers"],
)
def test_bodies_of_every_framing_however_they_are_cut(answer: bytes, cut: int) -> None:
    assert fetch(answer, cut) == (200, b"hello")


def test_the_request_is_well_formed() -> None:
    async def main() -> bytes:
        async with FakeServer(chunked(event("a", 1), event("b", 2), DONE)) as server:
            await complete(server.endpoint, "m", WANTED)
            return server.heard

    head, _, body = asyncio.run(main()).partition(b"\r\n\r\n")
    assert head.startswith(b"POST /v1/completions HTTP/1.1\r\nHost: 127.0.0.1:")
    assert b"\r\nAuthorization: Bearer secret" in head
    assert b'"prompt":[1,2,3],"max_tokens":2,"temperature":0,"ignore_eos":true,"stream":true' in body
    assert b'"continuous_usage_stats":true' in body


def test_each_chunk_has_its_time() -> None:
    found = ask(chunked(event("a", 1), event("", 2), USAGE, DONE))
    assert (found.sent, found.num_output_tokens, len(found.chunks)) == (0.0, 2, 2)
    assert found.chunks[0] < found.chunks[1]


def test_events_that_arrive_together_have_one_time() -> None:
    found = ask(chunked(event("a", 1) + event("b", 2) + USAGE + DONE))
    assert found.chunks == (1.0, 1.0)
    assert found.itl == (0.0,)


def test_events_cut_in_the_middle() -> None:
    whole = event("a", 1) + event("b", 2) + USAGE + DONE
    pieces = [whole[i : i + 11] for i in range(0, len(whole), 11)]
    assert len(ask(chunked(*pieces), cut=3).chunks) == 2


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (b"HTTP/1.1 429 Too Many Requests\r\nContent-Length: 4\r\n\r\nfull", "429: full"),
        (b"HTTP/1.1 503 x\r\nContent-Length: 0\r\n\r\n", "503: nothing"),
        (chunked(event("a", 1), event("b", 2)), r"without \[DONE\]"),
        (chunked(event("a", 1), DONE), "1 tokens came instead of 2"),
        (chunked(USAGE, DONE), "no chunk"),
        (chunked(event("a", 1), ERROR, DONE), "engine has stopped"),
        (chunked(b"data: {]\n\n", DONE), "no completion"),
        (chunked(event("a", 1))[:-7], "in the middle"),
        (HEAD + b"Content-Length: 100\r\n\r\nshort", "in the middle"),
        (HEAD + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n", "not framed"),
        (b"", "without an answer"),
        (b"SSH-2.0-OpenSSH\r\n\r\n", "does not speak HTTP|no HTTP status"),
        (b"HTTP/1.1 abc\r\n\r\n", "no HTTP status"),
        (b"HTTP/1.1 200 OK\r\nX: " + b"x" * (70 << 10) + b"\r\n\r\n", "a line of more than"),
        (b"HTTP/1.1 200 OK\r\n" + b"".join(b"H%d: x\r\n" % i for i in range(300)), "more than 256 headers"),
        (chunked(b"data: " + b"x" * (2 << 20)), "an event of more than"),
    ],
)  # fmt: skip
def test_what_goes_wrong_is_an_error_with_the_reason(answer: bytes, reason: str) -> None:
    with pytest.raises(HttpError, match=reason):
        ask(answer)


def test_nobody_listens() -> None:
    async def main() -> None:
        async with FakeServer(b"") as server:
            endpoint = server.endpoint
        await served_model(endpoint)

    with pytest.raises(HttpError, match=r"no server answers at 127\.0\.0\.1:\d+"):
        asyncio.run(main())


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        (b'{"object":"list","data":[{"id":"m","object":"model"}]}', "m"),
        (b'{"data":[]}', HttpError),
        (b"<html>", HttpError),
    ],
)
def test_the_served_model_is_asked_for(body: bytes, expected: str | type[Exception]) -> None:
    async def main() -> str:
        head = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body)
        async with FakeServer(head + body) as server:
            return await served_model(server.endpoint)

    if isinstance(expected, str):
        assert asyncio.run(main()) == expected
    else:
        with pytest.raises(expected):
            asyncio.run(main())


PARSED: list[tuple[str, Callable[[Endpoint], object], object]] = [
    ("http://127.0.0.1:8000", lambda e: (e.host, e.port), ("127.0.0.1", 8000)),
    ("http://localhost", lambda e: e.authority, "localhost:80"),
    ("http://[::1]:8000/v1", lambda e: e.authority, "[::1]:8000"),
]


@pytest.mark.parametrize(("url", "part", "expected"), PARSED)
def test_urls_of_this_machine(url: str, part: Callable[[Endpoint], object], expected: object) -> None:
    assert part(Endpoint.parse(url)) == expected


@pytest.mark.parametrize("url", ["https://127.0.0.1", "127.0.0.1:8000", "http://", "http://h:99999", "ftp://h"])
def test_urls_that_are_none(url: str) -> None:
    with pytest.raises(UserInputError, match="--url"):
        Endpoint.parse(url)


def test_other_machines_only_when_allowed() -> None:
    with pytest.raises(UserInputError, match="--allow-remote"):
        Endpoint.parse("http://192.0.2.1:8000")
    with pytest.raises(UserInputError, match="--allow-remote"):
        Endpoint.parse("http://127.0.0.1.example.org")
    assert Endpoint.parse("http://192.0.2.1:8000", allow_remote=True).host == "192.0.2.1"

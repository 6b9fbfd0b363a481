"""The API process's side of the engine, against a socket that the test itself holds."""

import asyncio
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import pytest

from pllm.runtime.engine_client import EngineClient
from pllm.runtime.errors import EngineDeadError, QueueFullError, RequestError
from pllm.runtime.messages import (
    Abort,
    Command,
    EngineInfo,
    Event,
    FrameReader,
    Ready,
    Refused,
    Step,
    Submit,
    decode_command,
    encode_frame,
)
from pllm.runtime.sampling_params import SamplingParams
from pllm.runtime.sequence import Request
from pllm.runtime.step import SchedulerStats, TokenDelta
from pllm.runtime.token_stream import DELTAS_A_TURN

STATS = SchedulerStats(0, 0, 0, 0, 0, 0, 0, 0, 0, 0)
INFO = EngineInfo(
    model_name="m",
    model_source="s",
    vocab_size=10,
    max_num_seqs=2,
    max_num_batched_tokens=16,
    max_model_len=32,
    block_size=16,
    num_blocks=4,
    enable_prefix_caching=True,
    open_seconds=0.0,
)


def request(name: str, n: int = 1) -> Request:
    return Request(name, (1, 2), SamplingParams(n=n), (), 0.0)


def step(*deltas: TokenDelta) -> Step:
    return Step(list(deltas), STATS)


class Engine:
    """The other end: says what the test tells it to, and hears what the client sends."""

    def __init__(self, client: EngineClient, end: socket.socket) -> None:
        self.client = client
        self.end = end
        self._frames = FrameReader()
        self._heard: list[Command] = []

    async def say(self, *events: Event) -> None:
        await asyncio.get_running_loop().sock_sendall(self.end, b"".join(bytes(encode_frame(e)) for e in events))

    async def hear(self) -> Command:
        while not self._heard:
            data = await asyncio.get_running_loop().sock_recv(self.end, 65536)
            self._heard += map(decode_command, self._frames.feed(data))
        return self._heard.pop(0)


@asynccontextmanager
async def attached() -> AsyncIterator[Engine]:
    ready = asyncio.Event()
    client = EngineClient(lambda info: ready.set())
    ours, theirs = socket.socketpair()
    theirs.setblocking(False)
    with theirs:
        await client.attach(ours, lambda: None)
        engine = Engine(client, theirs)
        await engine.say(Ready(INFO, STATS))
        await ready.wait()
        yield engine
        client.detach("over")
        await asyncio.sleep(0)


def scenario(body: Callable[[Engine], Awaitable[None]]) -> None:
    async def main() -> None:
        async with asyncio.timeout(20), attached() as engine:
            await body(engine)

    asyncio.run(main())


def test_what_nobody_took_is_taken_at_once() -> None:
    async def body(engine: Engine) -> None:
        stream = engine.client.submit([request("a"), request("b")])
        assert isinstance(await engine.hear(), Submit)
        await engine.say(step(TokenDelta("a", 0, [1]), TokenDelta("b", 0, [5])), step(TokenDelta("a", 0, [2])))
        await engine.say(step(TokenDelta("unknown", 0, [9]), TokenDelta("a", 0, [3], finish_reason="stop")))
        taken = await stream.take()
        while sum(len(delta.token_ids) for delta in taken) < 4:
            taken += await stream.take()
        assert [(delta.request_id, delta.token_ids) for delta in taken] == [
            ("a", [1]),
            ("b", [5]),
            ("a", [2]),
            ("a", [3]),
        ]
        assert not stream.finished
        assert engine.client.num_requests == 1
        await engine.say(step(TokenDelta("b", 0, [6], finish_reason="length")))
        await stream.take()
        assert stream.finished
        assert engine.client.num_requests == 0

    scenario(body)


def test_a_flood_leaves_the_event_loop_to_others() -> None:
    streams, steps = 40, 60

    async def body(engine: Engine) -> None:
        taken = handled = 0  # in this turn of the loop
        most_taken = most_handled = turns = 0

        async def read(name: str) -> list[int]:
            nonlocal taken
            stream = engine.client.submit([request(name)])
            tokens: list[int] = []
            while not stream.finished or len(tokens) < steps:
                deltas = await stream.take()
                taken += len(deltas)
                tokens += [token for delta in deltas for token in delta.token_ids]
            return tokens

        async def watch() -> None:
            nonlocal taken, handled, most_taken, most_handled, turns
            while True:
                most_taken, taken = max(most_taken, taken), 0
                most_handled = max(most_handled, engine.client.num_messages - handled)
                handled = engine.client.num_messages
                turns += 1
                await asyncio.sleep(0)

        watcher = asyncio.ensure_future(watch())
        readers = [asyncio.ensure_future(read(str(i))) for i in range(streams)]
        await asyncio.sleep(0)
        flood = [
            step(
                *(TokenDelta(str(i), 0, [n], finish_reason="stop" if n == steps - 1 else None) for i in range(streams))
            )
            for n in range(steps)
        ]
        await engine.say(*flood)
        assert await asyncio.gather(*readers) == [list(range(steps))] * streams
        watcher.cancel()
        assert 0 < most_taken <= 4 * DELTAS_A_TURN  # this task does not always run at the same place of a turn
        frame = len(encode_frame(flood[0]))
        assert 0 < most_handled <= 2 * (32 * 1024 // frame + 1)
        assert turns > streams * steps // (2 * DELTAS_A_TURN)

    scenario(body)


def test_a_stream_that_nobody_waits_for_any_more_says_nothing() -> None:
    async def body(engine: Engine) -> None:
        stream = engine.client.submit([request("a")])
        await engine.say(step(*(TokenDelta("a", 0, [n]) for n in range(100))))
        while engine.client.num_messages < 2:
            await asyncio.sleep(0.001)
        stream.fail(EngineDeadError("gone"), at_once=True)
        with pytest.raises(EngineDeadError, match="gone"):
            await stream.take()

    scenario(body)


def test_a_sequence_that_ended_by_its_text_is_aborted_and_says_no_more() -> None:
    async def body(engine: Engine) -> None:
        stream = engine.client.submit([request("a", n=2)])
        await engine.hear()
        stream.end_sequence("a", 1)
        stream.end_sequence("a", 1)
        assert await engine.hear() == Abort("a", 1)
        await engine.say(step(TokenDelta("a", 1, [7]), TokenDelta("a", 0, [8], finish_reason="stop")))
        assert [delta.token_ids for delta in await stream.take()] == [[8]]
        assert stream.finished
        stream.close()  # nothing is left to abort
        engine.client.reset_prefix_cache()
        assert not isinstance(await engine.hear(), Abort)

    scenario(body)


def test_closing_aborts_what_has_not_finished() -> None:
    async def body(engine: Engine) -> None:
        stream = engine.client.submit([request("a"), request("b")])
        await engine.hear()
        await engine.hear()
        await engine.say(step(TokenDelta("a", 0, [1], finish_reason="stop")))
        await stream.take()
        stream.close()
        assert await engine.hear() == Abort("b")
        assert engine.client.num_requests == 0

    scenario(body)


@pytest.mark.parametrize(
    ("refused", "error"),
    [
        (Refused("a", "full", queue_full=True), QueueFullError),
        (Refused("a", "too long", param="prompt", code="context_length_exceeded"), RequestError),
    ],
)
def test_refusals(refused: Refused, error: type[Exception]) -> None:
    async def body(engine: Engine) -> None:
        stream = engine.client.submit([request("a")])
        await engine.say(refused)
        with pytest.raises(error, match=refused.message) as caught:
            await stream.take()
        if isinstance(caught.value, RequestError):
            assert (caught.value.param, caught.value.code) == (refused.param, refused.code)

    scenario(body)


def test_a_lost_engine_fails_its_streams_after_what_they_had() -> None:
    async def body(engine: Engine) -> None:
        stream = engine.client.submit([request("a")])
        await engine.say(step(TokenDelta("a", 0, [1])))
        while engine.client.num_messages < 2:
            await asyncio.sleep(0.001)
        engine.client.detach("it was killed")
        assert [delta.token_ids for delta in await stream.take()] == [[1]]
        with pytest.raises(EngineDeadError, match="it was killed"):
            await stream.take()
        with pytest.raises(EngineDeadError, match="not ready"):
            engine.client.submit([request("b")])
        stream.close()

    scenario(body)

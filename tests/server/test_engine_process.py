"""The engine's end of the socket, and what crosses it."""

import json
import os
import random
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator

import pytest

from pllm.runtime.engine_process import EngineLoop
from pllm.runtime.messages import (
    Abort,
    Event,
    Failed,
    FrameReader,
    Ready,
    Refused,
    ResetPrefixCache,
    Shutdown,
    Step,
    Submit,
    decode_command,
    decode_event,
    encode_frame,
)
from pllm.runtime.sampling_params import SamplingParams
from pllm.runtime.sequence import Request
from pllm.runtime.step import SchedulerStats, TokenDelta, TokenLogprobs

from .fake_core import open_core
from .servers import HERE, environment

STATS = SchedulerStats(1, 2, 3, 4, 5, 6, 7, 8, 9, 10)


def request(name: str = "r", *, prompt: str = "abc", **params: object) -> Request:
    return Request(name, tuple(prompt.encode()), SamplingParams(**params), (258,), time.monotonic())  # type: ignore[arg-type]


def test_messages_survive_the_way() -> None:
    logprobs = TokenLogprobs(3, -0.5, 1, ((3, -0.5, 1), (4, -2.0, 2)))
    delta = TokenDelta("r", 1, [3], [logprobs], "stop", "x", 16, [logprobs], None, 12.5)
    refused, failed = Refused("r", "no", param="n", code="c"), Failed("why", 4, permanent=True)
    for event in (Step([delta], STATS, 1.02), refused, failed):
        assert decode_event(FrameReader().feed(encode_frame(event))[0]) == event
    sent = request(stop=["a"], logit_bias={7: 1.5}, seed=2**62, temperature=0.5)
    for command in (Submit(sent), Abort("r"), Abort("r", 2), ResetPrefixCache(), Shutdown()):
        assert decode_command(FrameReader().feed(encode_frame(command))[0]) == command


def test_frames_cut_anywhere() -> None:
    commands = [Abort("x" * length, length) for length in (0, 1, 100, 100_000, 3)]
    stream = b"".join(bytes(encode_frame(command)) for command in commands)
    for seed in range(20):
        cut = random.Random(seed)
        reader, frames, place = FrameReader(), [], 0
        while place < len(stream):
            size = cut.choice([1, 3, 1000, 100_000])
            frames += reader.feed(stream[place : place + size])
            place += size
        assert [decode_command(frame) for frame in frames] == commands


class Peer:
    """The API process's end, in this process; the engine loop runs in a thread."""

    def __init__(self) -> None:
        self.end, other = socket.socketpair()
        self.end.settimeout(20)
        self._frames = FrameReader()
        self._events: list[Event] = []
        self.loop = threading.Thread(target=EngineLoop(open_core(HERE).engine, other).run)
        self.loop.start()

    def send(self, *commands: Submit | Abort | Shutdown | ResetPrefixCache) -> None:
        self.end.sendall(b"".join(bytes(encode_frame(command)) for command in commands))

    def next(self) -> Event:
        while not self._events:
            self._events += map(decode_event, self._frames.feed(self.end.recv(65536)))
        return self._events.pop(0)


@pytest.fixture
def peer() -> Iterator[Peer]:
    peer = Peer()
    yield peer
    peer.end.close()
    peer.loop.join(20)
    assert not peer.loop.is_alive()


def test_one_message_a_step(peer: Peer) -> None:
    peer.send(Submit(request("a", prompt="xy")), Submit(request("b", prompt="z")))
    first, second, third = (peer.next() for _ in range(3))
    assert isinstance(first, Step)
    assert {delta.request_id: delta.token_ids for delta in first.deltas} == {"a": [120], "b": [122]}
    assert isinstance(second, Step)
    assert {delta.request_id: delta.finish_reason for delta in second.deltas} == {"a": None, "b": "stop"}
    assert isinstance(third, Step)
    assert [(delta.request_id, delta.finish_reason) for delta in third.deltas] == [("a", "stop")]
    assert third.stats.num_running == 0


def test_what_cannot_run_is_refused_and_the_rest_goes_on(peer: Peer) -> None:
    peer.send(Submit(request("long", prompt="x" * 600)), Submit(request("short", prompt="x")))
    refused = peer.next()
    assert isinstance(refused, Refused)
    assert (refused.request_id, refused.code, refused.queue_full) == ("long", "context_length_exceeded", False)
    step = peer.next()
    assert isinstance(step, Step)
    assert step.deltas[0].request_id == "short"


def test_an_abort_frees_everything_and_says_so(peer: Peer) -> None:
    peer.send(Submit(request("a", ignore_eos=True, max_tokens=400)))
    peer.next()
    peer.send(Abort("a"), Abort("unknown", 3))
    while True:
        step = peer.next()
        assert isinstance(step, Step)
        if step.stats.num_running == 0:
            break
    assert step.stats.kv_blocks_used == 0


def test_shutdown(peer: Peer) -> None:
    peer.send(Submit(request("a", ignore_eos=True, max_tokens=400)), Shutdown())
    peer.loop.join(20)
    assert not peer.loop.is_alive()


class TestProcess:
    def start(self, end: socket.socket, **env: str) -> subprocess.Popen[bytes]:
        options = json.dumps({"artifact": str(HERE), "core": "fake_core:open_core"})
        return subprocess.Popen(
            [sys.executable, "-m", "pllm.runtime.engine_process", str(end.fileno()), str(os.getpid()), options],
            pass_fds=[end.fileno()],
            env=environment(env),
        )

    def test_it_ends_with_the_socket_and_not_with_a_signal(self) -> None:
        ours, theirs = socket.socketpair()
        with theirs:
            process = self.start(theirs)
        ours.settimeout(20)
        event = decode_event(FrameReader().feed(ours.recv(65536))[0])
        assert isinstance(event, Ready)
        assert event.info.max_num_seqs == 8
        process.send_signal(signal.SIGTERM)
        process.send_signal(signal.SIGINT)
        ours.sendall(encode_frame(ResetPrefixCache()))
        assert isinstance(decode_event(FrameReader().feed(ours.recv(65536))[0]), Step)
        ours.close()
        assert process.wait(20) == 0

    def test_an_artifact_that_cannot_be_opened(self) -> None:
        ours, theirs = socket.socketpair()
        with theirs:
            process = self.start(theirs, PLLM_FAKE_OPEN_ERROR="ArtifactMismatchError")
        ours.settimeout(20)
        event = decode_event(FrameReader().feed(ours.recv(65536))[0])
        assert isinstance(event, Failed)
        assert (event.exit_code, event.permanent) == (4, True)
        assert process.wait(20) == 4


BANNED = {
    "engine_process": [
        "starlette",
        "uvicorn",
        "uvloop",
        "tokenizers",
        "jinja2",
        "torch",
        "transformers",
        "prometheus_client",
    ],
    "server.serve": ["numpy", "torch", "transformers", "sympy"],
}


@pytest.mark.parametrize("module", BANNED)
def test_each_process_imports_only_what_it_needs(module: str) -> None:
    program = f"import sys, pllm.runtime.{module}; print([name for name in {BANNED[module]} if name in sys.modules])"
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"

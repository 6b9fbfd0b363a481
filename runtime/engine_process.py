"""The engine process: ``python -m pllm.runtime.engine_process FD PARENT_PID OPTIONS``, started by the API process.

It opens the artifact and then repeats: take the commands that have come, do one step, send one message. With nothing to
do it sleeps in ``recv``. It ends when its parent does: the socket then reads as ended, and Linux kills it besides.
"""

import contextlib
import ctypes
import gc
import importlib
import os
import signal
import socket
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, cast

import msgspec

from pllm.runtime.engine import Engine
from pllm.runtime.errors import PllmError, QueueFullError, RequestError
from pllm.runtime.latencies import Latencies
from pllm.runtime.messages import (
    Abort,
    Command,
    EngineInfo,
    EngineOptions,
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
    encode_frame,
)

if TYPE_CHECKING:
    from pllm.runtime.manifest import Manifest

__all__ = ["Core", "EngineLoop", "main"]

_PR_SET_PDEATHSIG = 1
_RECEIVE_BYTES = 1 << 18


class Core(Protocol):
    """An open artifact as this process needs it (`pllm.runtime.engine_core.EngineCore`)."""

    engine: Engine
    manifest: "Manifest"
    latencies: Latencies
    notices: tuple[str, ...]

    def close(self) -> None: ...


class EngineLoop:
    """Commands in, one message a step out, until `Shutdown` or the other end of the socket has gone."""

    def __init__(self, engine: Engine, connection: socket.socket) -> None:
        self._engine = engine
        self._socket = connection
        self._frames = FrameReader()

    def run(self) -> None:
        """Returns when there is nobody to serve any more. What a step raises is raised here."""
        engine = self._engine
        while True:
            commands = self._receive(wait=not engine.has_unfinished)
            for command in commands:
                if isinstance(command, Shutdown):
                    return
                self._obey(command)
            if engine.has_unfinished:
                deltas = engine.step()
                self._send(Step(deltas, engine.stats(), engine.perf_ratio))
            elif commands:
                self._send(Step([], engine.stats(), engine.perf_ratio))

    def _obey(self, command: Command) -> None:
        match command:
            case Submit(request):
                try:
                    self._engine.submit(request)
                except (RequestError, QueueFullError) as error:
                    self._send(_refusal(request.request_id, error))
            case Abort(request_id, index):
                self._engine.abort(request_id, index)
            case ResetPrefixCache():
                self._engine.reset_prefix_cache()

    def _receive(self, *, wait: bool) -> list[Command]:
        """The commands that have come; with ``wait`` at least one. The end of the socket reads as a `Shutdown`."""
        commands: list[Command] = []
        while True:
            try:
                data = self._socket.recv(_RECEIVE_BYTES, 0 if wait and not commands else socket.MSG_DONTWAIT)
            except BlockingIOError:
                return commands
            except ConnectionError:
                data = b""
            if not data:
                return [*commands, Shutdown()]
            commands += map(decode_command, self._frames.feed(data))

    def _send(self, event: Event) -> None:
        send_event(self._socket, event)


def send_event(connection: socket.socket, event: Event) -> None:
    """Sends one frame. A parent that has gone is no error here: the next receive finds that out."""
    with contextlib.suppress(ConnectionError):
        connection.sendall(encode_frame(event))


def _refusal(request_id: str, error: RequestError | QueueFullError) -> Refused:
    if isinstance(error, QueueFullError):
        return Refused(request_id, str(error), queue_full=True)
    return Refused(request_id, str(error), param=error.param, code=error.code)


def die_with_parent(parent_pid: int) -> None:
    """Asks Linux to kill this process when its parent ends, also while it opens an artifact and reads no socket."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent_pid:  # it went before we asked
        raise SystemExit(0)


def open_core(options: EngineOptions) -> Core:
    """The engine core over the options' artifact. Limits that are None are not passed on: the artifact's own hold."""
    module_name, _, attribute = options.core.partition(":")
    factory: Any = importlib.import_module(module_name)
    for name in attribute.split("."):
        factory = getattr(factory, name)
    limits = {
        name: value
        for name, value in msgspec.structs.asdict(options).items()
        if name not in ("artifact", "core") and value is not None
    }
    return cast(Core, factory(Path(options.artifact), **limits))


def describe(core: Core, open_seconds: float) -> EngineInfo:
    """What the API process needs to know of the open engine."""
    config = core.engine.config
    return EngineInfo(
        model_name=core.manifest.name,
        model_source=core.manifest.provenance.checkpoint,
        vocab_size=config.vocab_size,
        max_num_seqs=config.max_num_seqs,
        max_num_batched_tokens=config.max_num_batched_tokens,
        max_model_len=config.max_model_len,
        block_size=config.block_size,
        num_blocks=config.num_blocks,
        enable_prefix_caching=config.enable_prefix_caching,
        open_seconds=open_seconds,
        grammars=() if core.manifest.grammars is None else core.manifest.grammars.files,
        notices=core.notices,
    )


def fail(connection: socket.socket, error: Exception) -> int:
    """What nobody foresaw: the traceback for the log, a line for the API process; the exit code."""
    import traceback  # noqa: PLC0415  (a cold start does not owe its imports)

    traceback.print_exception(error)
    send_event(connection, Failed(f"{type(error).__name__}: {error}", 1, permanent=False))
    return 1


def main(arguments: list[str]) -> int:
    """Runs the engine process; the exit code is that of the error that ended it, 0 when the parent did."""
    started = time.monotonic()
    file_descriptor, parent_pid, options = arguments
    # A Ctrl-C reaches the whole process group: whether to drain or to end is the parent's decision.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    die_with_parent(int(parent_pid))
    with socket.socket(fileno=int(file_descriptor)) as connection:
        try:
            core = open_core(msgspec.json.decode(options, type=EngineOptions))
        except PllmError as error:
            send_event(connection, Failed(str(error), error.exit_code, permanent=True))
            return error.exit_code
        except Exception as error:
            return fail(connection, error)
        try:
            core.engine.compare_with(core.latencies.rows)
            gc.collect()
            gc.freeze()  # what the start has made lives as long as the process: no later collection walks it
            send_event(connection, Ready(describe(core, time.monotonic() - started), core.engine.stats()))
            EngineLoop(core.engine, connection).run()
        except Exception as error:
            return fail(connection, error)
        finally:
            core.close()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

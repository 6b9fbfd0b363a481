"""A side of a gate: an artifact and the code that runs it; and its worker, a process that measures in turns."""

import os
import select
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, TypeVar

import msgspec

from pllm.runtime.bench.served_artifact import error_of
from pllm.runtime.errors import MeasurementError, PllmError
from pllm.runtime.gate.turns import Closed, Job, Opened, Took, Turn

__all__ = ["Side", "Worker"]

_WITHIN = 600.0  # seconds for an answer
_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class Side:
    """``path`` is a folder that holds a link ``pllm`` to another checkout's; None: the code that runs here.
    ``program`` is the module that the worker is."""

    label: str
    artifact: Path
    path: Path | None = None
    program: str = "pllm.runtime.gate.worker"

    def command(self, module: str, *words: str) -> list[str]:
        """The side's own Python, with a module of the side's own code."""
        return [sys.executable, "-P", "-m", module, *words]

    def environment(self) -> Mapping[str, str]:
        """Ours; where the code is another checkout's, that is found first."""
        if self.path is None:
            return os.environ
        return {**os.environ, "PYTHONPATH": str(self.path)}

    def told(self, module: str, *words: str) -> bytes:
        """What a program of the side's own code writes. Raises the error that it ended with."""
        done = subprocess.run(self.command(module, *words), capture_output=True, env=self.environment(), check=False)
        if done.returncode:
            raise _ended(self, done.returncode, done.stderr)
        return done.stdout


@dataclass(slots=True)
class Worker:
    """A side's running process. ``started`` is on the monotonic clock; ``opened`` is what it said first."""

    side: Side
    started: float
    opened: Opened = field(init=False)
    _process: subprocess.Popen[bytes]
    _errors: IO[bytes]
    _unread: bytes = b""

    @classmethod
    def start(cls, side: Side, *, num_blocks: int, threads: int) -> "Worker":
        """Start it; return when it has made its first token. Raises the error that it ended with."""
        errors = tempfile.TemporaryFile(prefix="pllm-gate-")  # noqa: SIM115  (closed with the worker)
        job = Job(artifact=str(side.artifact.absolute()), num_blocks=num_blocks, threads=threads)
        started = time.monotonic()
        process = subprocess.Popen(
            side.command(side.program),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            env=side.environment(),
        )
        worker = cls(side, started, process, errors)
        try:
            worker.opened = worker._ask(job, Opened)
        except BaseException:
            worker.kill()
            raise
        return worker

    def take(self, turn: Turn) -> Took:
        """One turn. Raises MeasurementError where the worker died or took too long."""
        return self._ask(turn, Took)

    def close(self) -> Closed:
        """End it; what it held."""
        try:
            self._stdin.close()
            closed = self._answer(Closed)
            self._process.wait(_WITHIN)
        finally:
            self.kill()
        return closed

    def kill(self) -> None:
        """End it, whatever it does."""
        self._process.kill()
        self._process.wait()
        for file in (self._process.stdin, self._process.stdout, self._errors):
            if file is not None:
                file.close()

    def _ask(self, question: msgspec.Struct, kind: type[_T]) -> _T:
        try:
            self._stdin.write(msgspec.json.encode(question) + b"\n")
            self._stdin.flush()
        except BrokenPipeError:
            self._raise_ended()
        return self._answer(kind)

    def _answer(self, kind: type[_T]) -> _T:
        output = self._process.stdout
        assert output is not None
        deadline = time.monotonic() + _WITHIN
        while b"\n" not in self._unread:
            ready, _, _ = select.select([output], [], [], max(0.0, deadline - time.monotonic()))
            if not ready:
                raise MeasurementError(f"the measurement is void: {self.side.label} gave no answer in {_WITHIN:.0f} s")
            got = os.read(output.fileno(), 1 << 16)
            if not got:
                self._raise_ended()
            self._unread += got
        line, self._unread = self._unread.split(b"\n", 1)
        return msgspec.json.decode(line, type=kind)

    def _raise_ended(self) -> None:
        code = self._process.wait()
        self._errors.seek(0)
        raise _ended(self.side, code, self._errors.read())

    @property
    def _stdin(self) -> IO[bytes]:
        assert self._process.stdin is not None
        return self._process.stdin


def _ended(side: Side, code: int, said: bytes) -> PllmError:
    lines = said.decode(errors="replace").strip().splitlines()
    reason = lines[-1] if lines else f"exit code {code}"
    return error_of(code, f"{side.label} ({side.artifact}) cannot be measured: {reason}")

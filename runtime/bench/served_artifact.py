"""A server of our own for the length of a measurement: ``pllm run`` on a free port of this machine."""

import http.client
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from pllm.runtime.errors import ArtifactError, PllmError, UserInputError

__all__ = ["HOST", "ServedArtifact", "error_of", "serving"]

HOST = "127.0.0.1"
_POLL = 0.002  # seconds between two questions whether it is ready
_STOP = 10.0  # seconds to end by itself
_ERRORS: dict[int, type[PllmError]] = {2: UserInputError, 4: ArtifactError}


class ServedArtifact:
    """A running ``pllm run``. ``port`` is known before it is ready."""

    def __init__(self, process: subprocess.Popen[bytes], port: int, log: Path) -> None:
        self.process = process
        self.port = port
        self._log = log

    @property
    def pid(self) -> int:
        return self.process.pid

    def wait_answering(self, deadline: float) -> None:
        """Return when it answers at all, be it that it is not ready. Raises as `wait_ready`."""
        while self._status() is None:
            self._pause(deadline)

    def wait_ready(self, deadline: float) -> None:
        """Return when ``/ready`` is answered with 200; ``deadline`` is on the monotonic clock.

        Raises the error that the server ended with (its exit code, its last line), PllmError where it takes too long.
        """
        while self._status() != 200:
            self._pause(deadline)

    def _status(self) -> int | None:
        connection = http.client.HTTPConnection(HOST, self.port, timeout=60)
        try:
            connection.request("GET", "/ready")
            return connection.getresponse().status
        except (OSError, http.client.HTTPException):
            return None
        finally:
            connection.close()

    def _pause(self, deadline: float) -> None:
        code = self.process.poll()
        if code is not None:
            said = self._last_line()
            raise error_of(code, f"the server ended with exit code {code}: {said}")
        if time.monotonic() > deadline:
            raise PllmError(f"the server was not ready in time; it said: {self._last_line()}")
        time.sleep(_POLL)

    def _last_line(self) -> str:
        lines = self._log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
        return lines[-1] if lines else "nothing"


@contextmanager
def serving(artifact: str, flags: Sequence[str]) -> Iterator[ServedArtifact]:
    """Start ``pllm run ARTIFACT --port PORT FLAGS``; end it, and its engine, when the block is left.

    Yields at once, before it is ready. What it says on standard error is kept for error messages.
    """
    with tempfile.NamedTemporaryFile(prefix="pllm-bench-", suffix=".log") as log:
        port = _free_port()
        command = [sys.executable, "-m", "pllm", "run", artifact, "--host", HOST, "--port", str(port), *flags]
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=log)
        try:
            yield ServedArtifact(process, port, Path(log.name))
        finally:
            _stop(process)


def error_of(exit_code: int, reason: str) -> PllmError:
    """The error by which a command of ours said, with its exit code, why it ended."""
    return _ERRORS.get(exit_code, PllmError)(reason)


def _stop(process: subprocess.Popen[bytes]) -> None:
    with suppress(ProcessLookupError):
        os.kill(process.pid, signal.SIGTERM)
    try:
        process.wait(_STOP)
    except subprocess.TimeoutExpired:
        process.kill()  # its engine process dies with it
        process.wait()


def _free_port() -> int:
    """A port that nobody has. Somebody may take it before the server does, which then ends and says so."""
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        port: int = probe.getsockname()[1]
        return port

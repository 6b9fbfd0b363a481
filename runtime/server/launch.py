"""An engine process as its parent sees it: started with one end of a private socketpair, stopped, reaped.

Imported before anything heavy: the engine process is started first, and opens the artifact while its parent imports.
"""

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Mapping

__all__ = ["EngineProcess"]


class EngineProcess:
    """One life of the engine. ``socket`` is the parent's end, non-blocking; the child's end is closed here."""

    def __init__(
        self, process: subprocess.Popen[bytes], parent_end: socket.socket, options: Mapping[str, object]
    ) -> None:
        self._process = process
        self.options = options
        self.socket = parent_end
        self.started_at = time.monotonic()

    @classmethod
    def start(cls, options: Mapping[str, object]) -> "EngineProcess":
        """Starts ``python -m pllm.runtime.engine_process``; ``options`` are the fields of `messages.EngineOptions`.

        It stays in its parent's process group, so that a terminal's Ctrl-Z stops both, and dies with its parent.
        """
        parent_end, child_end = socket.socketpair()
        with child_end:
            parent_end.setblocking(False)
            arguments = [str(child_end.fileno()), str(os.getpid()), json.dumps(options)]
            process = subprocess.Popen(
                [sys.executable, "-m", "pllm.runtime.engine_process", *arguments],
                stdin=subprocess.DEVNULL,
                pass_fds=[child_end.fileno()],
            )
        return cls(process, parent_end, options)

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._process.pid

    def exit_code(self) -> int | None:
        """Reaps it if it has ended: its exit code, negative for a signal; None while it lives."""
        return self._process.poll()

    def is_stopped(self) -> bool:
        """Whether a signal (SIGSTOP, a debugger) holds it: it lives, and will not answer."""
        try:
            state = os.waitid(os.P_PID, self.pid, os.WSTOPPED | os.WNOHANG | os.WNOWAIT)
        except ChildProcessError:
            return False
        return state is not None

    def kill(self) -> None:
        """Ends it at once, and reaps it."""
        self._process.kill()
        self._process.wait()

    def close(self) -> None:
        """Closes the socket (which an idle engine takes as its end) and makes sure that the process has gone."""
        self.socket.close()
        self.kill()

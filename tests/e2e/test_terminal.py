"""The commands as a person types them."""

import os
import pty
import select
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

from .test_quickstart import ANSWER


class Terminal:
    """A command in a pseudo-terminal."""

    def __init__(self, *command: str) -> None:
        self._screen, inside = pty.openpty()
        self._process = subprocess.Popen(
            [sys.executable, "-m", "pllm", *command], stdin=inside, stdout=inside, stderr=inside, start_new_session=True
        )
        os.close(inside)
        self._unread = b""

    def type(self, text: str) -> None:
        os.write(self._screen, text.encode())

    def read_until(self, text: str, seconds: float = 30) -> str:
        """What is shown from where the last call ended, up to and including ``text``."""
        deadline = time.monotonic() + seconds
        while text.encode() not in self._unread:
            ready, _, _ = select.select([self._screen], [], [], max(0, deadline - time.monotonic()))
            assert ready, f"{text!r} does not come; shown so far: {self._unread.decode()}"
            with suppress(OSError):  # EIO: the command has ended
                self._unread += os.read(self._screen, 4096)
                continue
            raise AssertionError(f"it ended before {text!r} came; shown so far: {self._unread.decode()}")
        before, _, self._unread = self._unread.partition(text.encode())
        return before.decode() + text

    def wait(self) -> int:
        code = self._process.wait(30)
        os.close(self._screen)
        return code


def test_chat(artifact: Path) -> None:
    terminal = Terminal("chat", str(artifact), "--temperature", "0")
    assert "Ctrl-D" in terminal.read_until("> ")
    terminal.type("What is 17 + 25?\n")
    terminal.read_until(ANSWER)
    terminal.read_until("> ")
    terminal.type("你好\n")
    assert "你好!" in terminal.read_until("> ")
    terminal.type("\N{END OF TRANSMISSION}")  # Ctrl-D
    assert terminal.wait() == 0


def run(*words: str) -> str:
    done = subprocess.run([sys.executable, "-m", "pllm", *words], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_verify_check_and_inspect(artifact: Path) -> None:
    verified = run("verify", str(artifact))
    assert verified.count("the same tokens") == 4
    assert "step of" in verified
    assert "runs here" in run("check", str(artifact))
    assert "Qwen3ForCausalLM" in run("inspect", str(artifact))

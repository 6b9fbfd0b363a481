"""The process that tries grammars out: ``python -m pllm.runtime.grammar_process TOKENIZER VOCAB_SIZE EOS_IDS``.

A schema or an expression from a stranger may take minutes, gigabytes, or the process that compiles it. So the server
has it compiled here first. This process opens the vocabulary once and forks for each grammar; a child that exceeds its
processor time or its memory is killed by the kernel, whatever native code it is in, and the grammar is refused.

Lines of JSON on standard input, ``{"id": 1, "form": {...}}``; and on standard output ``{"id": 1, "error": null}``, or
what is wrong. The end of standard input ends the process.
"""

import json
import os
import resource
import selectors
import signal
import sys
import warnings
from collections import deque
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final, NoReturn

from pllm.runtime.errors import RequestError
from pllm.runtime.grammar import Grammar, Vocabulary
from pllm.runtime.structured_outputs import StructuredOutputsParams

__all__ = ["CPU_SECONDS", "main"]

CPU_SECONDS: Final = 2.0
_WALL_SECONDS: Final = 30.0  # where the machine is busy, or the child sleeps for whatever reason
_MEMORY: Final = 256 << 20  # bytes beyond what the open vocabulary takes
_AT_ONCE: Final = 2

_TOO_LONG = f"The grammar takes more than {CPU_SECONDS:g} s to compile: make it simpler."
_TOO_LARGE = "The grammar is too large to compile: make it simpler."


class _Trials:
    """The children, two at once, and the grammars that wait for them."""

    def __init__(self, vocabulary: Vocabulary | RequestError) -> None:
        self._vocabulary = vocabulary
        self._waiting: deque[dict[str, Any]] = deque()
        self._running: dict[int, tuple[int, int]] = {}  # by the pipe's end: the question's id, and the process
        self._selector = selectors.DefaultSelector()
        self._selector.register(sys.stdin.fileno(), selectors.EVENT_READ)

    def run(self) -> None:
        """Until nobody asks any more."""
        rest = b""
        while True:
            for key, _ in self._selector.select():
                if key.fd != sys.stdin.fileno():
                    self._finish(key.fd)
                    continue
                data = os.read(key.fd, 1 << 16)
                if not data:
                    return
                *lines, rest = (rest + data).split(b"\n")
                self._waiting.extend(map(json.loads, lines))
            while self._waiting and len(self._running) < _AT_ONCE:
                self._begin(self._waiting.popleft())

    def _begin(self, question: dict[str, Any]) -> None:
        if isinstance(self._vocabulary, RequestError):
            _say(question["id"], self._vocabulary.message)
            return
        reading, writing = os.pipe()
        process = os.fork()
        if process == 0:
            _try(question["form"], self._vocabulary, writing)
        os.close(writing)
        self._running[reading] = (question["id"], process)
        self._selector.register(reading, selectors.EVENT_READ)

    def _finish(self, pipe: int) -> None:
        """The child has answered, or has died: its end of the pipe is ready either way."""
        number, process = self._running.pop(pipe)
        self._selector.unregister(pipe)
        with os.fdopen(pipe, "rb") as answer:
            error = answer.read().decode()
        _, status = os.waitpid(process, 0)
        if os.WIFSIGNALED(status):
            _say(number, _TOO_LONG if os.WTERMSIG(status) in (signal.SIGPROF, signal.SIGALRM) else _TOO_LARGE)
        else:
            _say(number, error if os.WEXITSTATUS(status) == 0 else _TOO_LARGE)


def _try(form: dict[str, Any], vocabulary: Vocabulary, pipe: int) -> NoReturn:
    """The child's whole life. It must not return into its parent's."""
    try:
        error = b""
        _limit()
        try:
            Grammar(StructuredOutputsParams(**form), vocabulary)
        except RequestError as refusal:
            error = refusal.message.encode()
        os.write(pipe, error)
        os._exit(0)
    finally:
        os._exit(1)


def _limit() -> None:
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    held = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (held + _MEMORY, held + _MEMORY))
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stderr.fileno())  # what dies of its limit has much to say
    signal.setitimer(signal.ITIMER_PROF, CPU_SECONDS)
    signal.setitimer(signal.ITIMER_REAL, _WALL_SECONDS)


def _say(number: int, error: str) -> None:
    sys.stdout.write(json.dumps({"id": number, "error": error or None}) + "\n")
    sys.stdout.flush()


def main(arguments: Sequence[str]) -> int:
    """Runs the process; 0 when standard input has ended."""
    tokenizer, vocab_size, eos_token_ids = arguments
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; who started this one ends it
    warnings.filterwarnings("ignore", message=".*fork.*", category=DeprecationWarning)  # threads of ours have ended
    vocabulary: Vocabulary | RequestError
    try:
        vocabulary = Vocabulary(Path(tokenizer), int(vocab_size), json.loads(eos_token_ids))
    except RequestError as error:
        vocabulary = error
    _Trials(vocabulary).run()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

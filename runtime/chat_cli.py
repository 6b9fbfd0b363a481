"""``pllm chat``: a conversation in the terminal."""

import sys
from argparse import ArgumentParser, Namespace
from collections.abc import Iterator
from contextlib import suppress
from typing import Any, TextIO

from pllm.runtime.errors import PllmError, RequestError, UserInputError
from pllm.runtime.llm import LLM
from pllm.runtime.sampling_params import SamplingParams

__all__ = ["Chat", "add_arguments", "main"]

_HELP = "Type a message and Enter. /clear begins anew, /exit (or Ctrl-D) ends, Ctrl-C stops an answer."


def add_arguments(parser: ArgumentParser) -> None:
    """The command's arguments."""
    parser.add_argument(
        "model", metavar="MODEL", help="an artifact; or a recipe, checkpoint or Hub id, which is built first"
    )
    parser.add_argument("--system", metavar="TEXT", help="a system message that every conversation begins with")
    parser.add_argument(
        "--max-tokens", type=int, metavar="N", help="the longest answer; default: what the context holds"
    )
    parser.add_argument(
        "--temperature", type=float, metavar="T", help="0 for the likeliest words; default: the model's own"
    )
    parser.add_argument("--chat-template", metavar="FILE", help="a Jinja template instead of the model's own")


def main(arguments: Namespace) -> int:
    """Run the command; its exit code."""
    sampling = {"max_tokens": arguments.max_tokens, "temperature": arguments.temperature}
    _check({name: value for name, value in sampling.items() if value is not None})
    with LLM(arguments.model, chat_template=arguments.chat_template) as llm:
        chat = Chat(llm, arguments.system, sampling)
        if sys.stdin.isatty():
            print(_HELP, file=sys.stderr)
        for line in _lines(sys.stdin):
            if line == "/exit":
                break
            if line == "/clear":
                chat.clear()
            elif line:
                chat.answer(line, sys.stdout)
    return 0


def _check(sampling: dict[str, Any]) -> None:
    """Raises UserInputError for a flag out of its range: before a model is opened, or even built."""
    try:
        SamplingParams(**sampling)
    except RequestError as error:
        raise UserInputError(f"--{(error.param or '').replace('_', '-')}: {error}") from None


class Chat:
    """One conversation. ``sampling``: fields of SamplingParams over the model's recommended ones; None means not
    said."""

    def __init__(self, llm: LLM, system: str | None, sampling: dict[str, Any]) -> None:
        self._llm = llm
        self._beginning = [] if system is None else [{"role": "system", "content": system}]
        self.messages = list(self._beginning)
        self._params = llm.chat_sampling_params(**sampling)

    def clear(self) -> None:
        """Forget what was said."""
        self.messages = list(self._beginning)

    def answer(self, message: str, out: TextIO) -> None:
        """Write the model's answer to ``out`` as it comes. Ctrl-C stops it; what was said until then counts as said.

        A message that cannot be answered (the context is full) is taken back, with the reason on standard error.
        """
        self.messages.append({"role": "user", "content": message})
        said: list[str] = []
        try:
            with suppress(KeyboardInterrupt):
                for delta in self._llm.stream(self._llm.chat_prompt(self.messages), self._params):
                    said.append(delta.text)
                    out.write(delta.text)
                    out.flush()
        except PllmError as error:
            self.messages.pop()
            print(error, file=sys.stderr)
            return
        out.write("\n")
        out.flush()
        self.messages.append({"role": "assistant", "content": "".join(said)})


def _lines(source: TextIO) -> Iterator[str]:
    """What is typed, a line at a time, with editing and history in a terminal; a Ctrl-C there drops the line."""
    if not source.isatty():
        yield from (line.strip() for line in source)
        return
    with suppress(ImportError):
        import readline  # noqa: F401, PLC0415  (makes input() edit)
    while True:
        try:
            yield input("> ").strip()
        except KeyboardInterrupt:
            print()
        except EOFError:
            print()
            return

"""``{"name": "f", "parameters": {...}}`` as the whole message: Llama 3, and calls that a grammar has forced."""

from pllm.runtime.message.json_text import SPACE, JsonCall
from pllm.runtime.message.pieces import Content, Piece

__all__ = ["PYTHON_TAG", "JsonCallsReader"]

PYTHON_TAG = "<|python_tag|>"


class JsonCallsReader:
    """One call after another, with ``;`` or ``,`` between them, in a list or not; or a message that is none.

    JSON is also what a model may simply have been asked for. So a message is a call only if it has arguments and its
    name is one of ``names``, where they are known.
    """

    def __init__(self, names: frozenset[str] | None) -> None:
        self._names = names
        self._state = "start"
        self._held = ""
        self._raw = ""
        self._num_calls = 0
        self._call = JsonCall(0, names, needs_arguments=True)

    def feed(self, text: str) -> list[Piece]:
        """The pieces that this settles."""
        if self._state == "lost":
            return []
        if self._state == "content":
            return [Content(text)] if text else []
        self._held += text
        pieces: list[Piece] = []
        while (self._read_call if self._state == "call" else self._look_for_call)(pieces):
            pass
        return pieces

    def finish(self) -> list[Piece]:
        """What was held back: between calls, nothing but the signs between them."""
        text = ""
        if self._state == "start" or (self._state == "call" and not self._call.has_begun):
            text = self._raw + self._held
        return [Content(text)] if text else []

    def _look_for_call(self, pieces: list[Piece]) -> bool:
        """At the beginning, or after a call."""
        signs = SPACE if self._state == "start" else SPACE + ";,]"
        rest = self._held.lstrip(signs)
        if rest.startswith(PYTHON_TAG):
            rest = rest[len(PYTHON_TAG) :].lstrip(signs)
        elif PYTHON_TAG.startswith(rest):
            return False
        if self._state == "start" and rest.startswith("["):
            rest = rest[1:].lstrip(SPACE)
        if not rest:
            return False
        if rest.startswith("{"):
            self._raw = self._held[: len(self._held) - len(rest)]
            self._held, self._state = rest, "call"
            self._call = JsonCall(self._num_calls, self._names, needs_arguments=True)
            return True
        pieces.append(Content(self._held if self._state == "start" else rest))
        self._held, self._state = "", "content"
        return False

    def _read_call(self, pieces: list[Piece]) -> bool:
        call = self._call
        found, used = call.feed(self._held)
        pieces += found
        self._raw += self._held[:used]
        self._held = self._held[used:]
        if call.is_complete:
            self._num_calls += 1
            self._state = "between"
        elif call.is_broken and call.has_begun:
            self._held, self._state = "", "lost"
        elif call.is_broken:
            pieces.append(Content(self._raw + self._held))
            self._held, self._state = "", "content"
        return self._state == "between"

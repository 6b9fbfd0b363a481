"""``<tool_call>{"name": "f", "arguments": {...}}</tool_call>``: Hermes, Qwen 2.5 and 3, and those made like them."""

from pllm.runtime.message.json_text import JsonCall
from pllm.runtime.message.pieces import Content, Piece, split_at

__all__ = ["CALL", "CALL_END", "HermesReader"]

CALL, CALL_END = "<tool_call>", "</tool_call>"


class HermesReader:
    """Calls amid what is said. Spaces and line ends before a call are not said; what is no call is, as it stands."""

    def __init__(self) -> None:
        self._state = "content"
        self._held = ""
        self._space = ""  # said, if no call follows
        self._raw = ""  # of the call, until it is known to be one
        self._num_calls = 0
        self._call = JsonCall(0, None, needs_arguments=False)

    def feed(self, text: str) -> list[Piece]:
        """The pieces that this settles."""
        self._held += text
        pieces: list[Piece] = []
        going_on = True
        while going_on:
            match self._state:
                case "content":
                    going_on = self._look_for_call(pieces)
                case "call":
                    going_on = self._read_call(pieces)
                case "after":
                    going_on = self._look_for_end()
                case _:  # a call that went wrong when it had begun: its rest means nothing
                    _, end, self._held = split_at(self._held, (CALL_END,))
                    going_on = bool(end)
                    self._state = "content" if end else "lost"
        return pieces

    def finish(self) -> list[Piece]:
        """What was held back."""
        text = ""
        if self._state == "content":
            text = self._space + self._held
        elif self._state == "call" and not self._call.has_begun:
            text = self._raw + self._held
        return [Content(text)] if text else []

    def _say(self, text: str, pieces: list[Piece]) -> None:
        text = self._space + text
        shown = text.rstrip()
        self._space = text[len(shown) :]
        if shown:
            pieces.append(Content(shown))

    def _look_for_call(self, pieces: list[Piece]) -> bool:
        before, marker, self._held = split_at(self._held, (CALL,))
        self._say(before, pieces)
        if marker:
            self._state, self._raw, self._space = "call", self._space + CALL, ""
            self._call = JsonCall(self._num_calls, None, needs_arguments=False)
        return bool(marker)

    def _read_call(self, pieces: list[Piece]) -> bool:
        call = self._call
        found, used = call.feed(self._held)
        pieces += found
        self._raw += self._held[:used]
        self._held = self._held[used:]
        if call.is_complete:
            self._num_calls += 1
            self._state = "after"
        elif call.is_broken and call.has_begun:
            self._num_calls += 1
            self._state = "lost"
        elif call.is_broken:
            self._state = "content"
            self._say(self._raw, pieces)
        return call.is_complete or call.is_broken

    def _look_for_end(self) -> bool:
        rest = self._held.lstrip()
        if rest.startswith(CALL_END):
            self._held = rest[len(CALL_END) :]
        elif CALL_END.startswith(rest):
            return False
        self._state = "content"
        return True

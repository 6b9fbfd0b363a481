"""``[TOOL_CALLS][{"name": "f", "arguments": {...}}]``, and since 2025 ``[TOOL_CALLS]f[ARGS]{...}``: Mistral."""

from pllm.runtime.message.json_calls import JsonCallsReader
from pllm.runtime.message.json_text import JsonValue
from pllm.runtime.message.pieces import CallArguments, CallStart, Content, Piece, split_at

__all__ = ["ARGS", "TOOL_CALLS", "MistralReader"]

TOOL_CALLS, ARGS = "[TOOL_CALLS]", "[ARGS]"
_LONGEST_HEAD = 512  # characters of a name and what stands beside it


class MistralReader:
    """What is said, and then calls in either form."""

    def __init__(self) -> None:
        self._state = "content"
        self._held = ""
        self._num_calls = 0
        self._arguments = JsonValue()
        self._list = JsonCallsReader(None)

    def feed(self, text: str) -> list[Piece]:
        """The pieces that this settles."""
        if self._state == "list":
            return self._list.feed(text)
        self._held += text
        pieces: list[Piece] = []
        going_on = True
        while going_on:
            match self._state:
                case "content":
                    before, marker, self._held = split_at(self._held, (TOOL_CALLS,))
                    if before.strip() if self._num_calls else before:  # between calls, spaces say nothing
                        pieces.append(Content(before))
                    going_on = bool(marker)
                    self._state = "head" if marker else "content"
                case "head":
                    going_on = self._read_head(pieces)
                case "arguments":
                    going_on = self._read_arguments(pieces)
                case _:
                    going_on = False
        return pieces

    def finish(self) -> list[Piece]:
        """What was held back."""
        if self._state == "list":
            return self._list.finish()
        text = self._held if self._state == "content" else TOOL_CALLS + self._held if self._state == "head" else ""
        return [Content(text)] if text else []

    def _read_head(self, pieces: list[Piece]) -> bool:
        """What stands between the marker and the arguments; or a list of calls instead."""
        head = self._held.lstrip()
        if head.startswith(("[", "{")):
            self._state, self._held = "list", ""
            pieces += self._list.feed(head)
            return False
        end = head.find("{")
        if end < 0 and len(head) <= _LONGEST_HEAD:
            return False
        name = head[: max(end, 0)].partition("[")[0].strip()
        if not name or any(character.isspace() for character in name):
            pieces.append(Content(TOOL_CALLS + self._held))
            self._state, self._held = "content", ""
            return False
        pieces.append(CallStart(self._num_calls, name))
        self._state, self._held, self._arguments = "arguments", head[end:], JsonValue()
        return True

    def _read_arguments(self, pieces: list[Piece]) -> bool:
        used = 0
        while used < len(self._held) and not self._arguments.is_complete:
            self._arguments.take(self._held[used])
            used += 1
        if used:
            pieces.append(CallArguments(self._num_calls, self._held[:used]))
        self._held = self._held[used:]
        if self._arguments.is_complete:
            self._num_calls += 1
            self._state = "content"
        return self._arguments.is_complete

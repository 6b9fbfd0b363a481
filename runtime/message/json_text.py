"""JSON as it comes, a character at a time: where a value ends, and what a call in JSON says."""

import json
from typing import Final

from pllm.runtime.message.pieces import CallArguments, CallStart, Piece

__all__ = ["JsonCall", "JsonValue"]

SPACE: Final = " \t\r\n"


class JsonValue:
    """Finds a value's end. Only brackets and strings are looked at: what a model writes may be wrong inside."""

    def __init__(self) -> None:
        self.is_complete = False
        self._depth = 0
        self._in_string = self._escaped = False
        self._is_scalar = False

    def take(self, character: str) -> bool:
        """Whether the character is the value's. A number or a word ends before what is not; all else with it."""
        if self._in_string:
            if self._escaped:
                self._escaped = False
            elif character == "\\":
                self._escaped = True
            elif character == '"':
                self._in_string = False
                self.is_complete = not self._depth
            return True
        if self._is_scalar and (character in ",}]" or character in SPACE):
            self.is_complete = True
            return False
        if character == '"':
            self._in_string = True
        elif character in "{[":
            self._depth += 1
        elif character in "}]":
            self._depth -= 1
            self.is_complete = self._depth <= 0
        elif not self._depth:
            self._is_scalar = True
        return True


class JsonCall:
    """Reads ``{"name": "f", "arguments": {...}}``: the name first, and then the arguments as they come.

    Keys may come in any order, and others with them. ``names``: what may be called; None for anything. Once something
    has been said of the call (`has_begun`), it is a call, complete or not; before, it may turn out to be none
    (`is_broken`), and its text is then whatever it is.
    """

    NAMES: Final = ("name", "function")
    ARGUMENTS: Final = ("arguments", "parameters")

    def __init__(self, index: int, names: frozenset[str] | None, *, needs_arguments: bool) -> None:
        self._index = index
        self._names = names
        self._needs_arguments = needs_arguments
        self.is_complete = self.is_broken = self.has_begun = False
        self._state = "start"
        self._value = JsonValue()
        self._text = ""  # of the key or value that is being read
        self._key = ""
        self._name: str | None = None
        self._arguments = ""  # not handed out yet
        self._has_arguments = False
        self._streams = False  # the value that is being read goes straight out

    def feed(self, text: str) -> tuple[list[Piece], int]:
        """The pieces that this settles, and how many characters are the call's."""
        used = 0
        while used < len(text) and not self.is_complete and not self.is_broken:
            used += self._take(text[used])
        return self._pieces(), used

    def _take(self, character: str) -> bool:
        """Whether the character was used; where it was not, it is to be looked at again."""
        if self._state in ("key", "value"):
            taken = self._value.take(character)
            if taken:
                self._text += character
            if self._value.is_complete:
                (self._end_key if self._state == "key" else self._end_value)()
            return taken
        match self._state:
            case _ if character in SPACE:
                pass
            case "start" if character == "{":
                self._state = "first key"
            case "first key" | "next key" if character == '"':
                self._begin("key", character)
            case "first key" | "comma" if character == "}":
                self._end()
            case "colon" if character == ":":
                self._state = "before value"
            case "before value" if character not in ",:}]":
                self._begin("value", character)
                self._streams = self._key in self.ARGUMENTS and character == "{" and not self._has_arguments
            case "comma" if character == ",":
                self._state = "next key"
            case _:
                self.is_broken = True
        return True

    def _begin(self, state: str, character: str) -> None:
        self._state, self._value, self._text = state, JsonValue(), character
        self._value.take(character)

    def _end_key(self) -> None:
        self._state = "colon"
        self._key = str(_loaded(self._text) or "")

    def _end_value(self) -> None:
        self._state = "comma"
        if self._key in self.NAMES and self._name is None:
            name = _loaded(self._text)
            if not isinstance(name, str) or not name or (self._names is not None and name not in self._names):
                self.is_broken = True
                return
            self._name = name
        elif self._key in self.ARGUMENTS and not self._has_arguments:
            self._has_arguments = True
            if self._streams:
                self._arguments += self._text
            else:  # some write an object's text, or nothing
                written = _loaded(self._text)
                self._arguments = written if isinstance(written, str) else "{}" if written is None else self._text
        self._streams = False
        self._text = ""

    def _end(self) -> None:
        if self._name is None or (self._needs_arguments and not self._has_arguments):
            self.is_broken = True
            return
        self.is_complete = True
        if not self._has_arguments:
            self._has_arguments, self._arguments = True, "{}"

    def _pieces(self) -> list[Piece]:
        """What may be said now: arguments only after the name, and no name before there are arguments."""
        if self._streams:
            self._arguments, self._text = self._arguments + self._text, ""
        if self._name is None or not self._arguments:
            return []
        pieces: list[Piece] = [] if self.has_begun else [CallStart(self._index, self._name)]
        pieces.append(CallArguments(self._index, self._arguments))
        self.has_begun, self._arguments = True, ""
        return pieces


def _loaded(text: str) -> object:
    try:
        value: object = json.loads(text, strict=False)
    except (ValueError, RecursionError):
        return None
    return value

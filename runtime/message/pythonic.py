"""``[f(a=1, b="x"), g()]`` as the whole message: Llama 3.2 and 4 and others whose calls are Python."""

import ast
import json
import re

from pllm.runtime.message.pieces import CallArguments, CallStart, Content, Piece

__all__ = ["PYTHON_END", "PYTHON_START", "PythonicReader"]

PYTHON_START, PYTHON_END = "<|python_start|>", "<|python_end|>"
_NAME = re.compile(r"\s*([A-Za-z_][A-Za-z0-9_.]*)\s*\(")
_NAME_SO_FAR = re.compile(r"\s*([A-Za-z_][A-Za-z0-9_.]*\s*)?")


class PythonicReader:
    """Calls with keyword arguments, each argument as soon as it is complete; or a message that is none.

    ``names``: what may be called. A list is also what a model may simply have been asked for.
    """

    def __init__(self, names: frozenset[str]) -> None:
        self._names = names
        self._state = "start"
        self._held = ""
        self._scanned = 0  # characters of what is held that have been looked at, within an argument
        self._depth = 0
        self._quote = ""
        self._escaped = False
        self._name = ""
        self._num_calls = 0
        self._num_arguments = 0
        self._raw = ""  # what stands before the first call's arguments

    def feed(self, text: str) -> list[Piece]:
        """The pieces that this settles."""
        if self._state == "lost":
            return []
        if self._state == "content":
            return [Content(text)] if text else []
        self._held += text
        pieces: list[Piece] = []
        going_on = True
        while going_on:
            match self._state:
                case "start":
                    going_on = self._look_for_list(pieces)
                case "name":
                    going_on = self._read_name(pieces)
                case "arguments":
                    going_on = self._read_argument(pieces)
                case "between":
                    going_on = self._look_for_next()
                case _:
                    going_on = False
        return pieces

    def finish(self) -> list[Piece]:
        """What was held back, unless calls have been made."""
        is_text = self._state in ("start", "name", "arguments") and not self._num_calls and not self._num_arguments
        return [Content(self._raw + self._held)] if is_text and self._raw + self._held else []

    def _give_up(self, pieces: list[Piece]) -> bool:
        """It is no call: text, if nothing has been called yet."""
        if self._num_calls or self._num_arguments:
            if self._state == "arguments" and self._num_arguments:
                pieces.append(CallArguments(self._num_calls, "}"))
            self._state = "lost"
        else:
            self._state = "content"
            pieces.append(Content(self._raw + self._held))
        self._held = ""
        return False

    def _look_for_list(self, pieces: list[Piece]) -> bool:
        rest = self._held.lstrip()
        if rest.startswith(PYTHON_START):
            rest = rest[len(PYTHON_START) :].lstrip()
        elif PYTHON_START.startswith(rest):
            return False
        if not rest:
            return False
        if not rest.startswith("["):
            return self._give_up(pieces)
        self._state = "name"
        self._raw = self._held[: len(self._held) - len(rest) + 1]
        self._held = rest[1:]
        return True

    def _read_name(self, pieces: list[Piece]) -> bool:
        found = _NAME.match(self._held)
        if found is None:
            so_far = _NAME_SO_FAR.match(self._held)
            assert so_far is not None
            return False if so_far.end() == len(self._held) else self._give_up(pieces)
        if found[1] not in self._names:
            return self._give_up(pieces)
        self._name, self._num_arguments, self._scanned = found[1], 0, 0
        self._raw += found[0]
        self._held = self._held[found.end() :]
        self._state = "arguments"
        return True

    def _read_argument(self, pieces: list[Piece]) -> bool:
        """Up to the comma or the parenthesis that ends it."""
        end = self._end_of_argument()
        if end is None:
            return False
        text, sign = self._held[:end], self._held[end]
        argument = _as_json(text) if text.strip() else ""
        if argument is None or (not argument and sign == ","):
            return self._give_up(pieces)
        opening = ", " if self._num_arguments else "{"
        said = (opening + argument if argument else "" if self._num_arguments else "{") + ("}" if sign == ")" else "")
        if not self._num_arguments:
            pieces.append(CallStart(self._num_calls, self._name))
        if said:
            pieces.append(CallArguments(self._num_calls, said))
        self._num_arguments += 1
        self._held, self._scanned = self._held[end + 1 :], 0
        if sign == ")":
            self._num_calls += 1
            self._state = "between"
        return True

    def _end_of_argument(self) -> int | None:
        for place in range(self._scanned, len(self._held)):
            character = self._held[place]
            if self._quote:
                if self._escaped:
                    self._escaped = False
                elif character == "\\":
                    self._escaped = True
                elif character == self._quote:
                    self._quote = ""
            elif character in "\"'":
                self._quote = character
            elif character in "([{":
                self._depth += 1
            elif character in ")]}" and self._depth:
                self._depth -= 1
            elif character in ",)" and not self._depth:
                return place
        self._scanned = len(self._held)
        return None

    def _look_for_next(self) -> bool:
        rest = self._held.lstrip()
        if not rest:
            return False
        self._held = rest[1:]
        self._state = "name" if rest[0] == "," else "lost"
        return self._state == "name"


def _as_json(text: str) -> str | None:
    """``key=value`` as a member of a JSON object; None where it is not that, or no literal."""
    try:
        call = ast.parse(f"f({text.strip()})", mode="eval").body
        if not isinstance(call, ast.Call) or call.args or len(call.keywords) != 1 or call.keywords[0].arg is None:
            return None
        value = json.dumps(ast.literal_eval(call.keywords[0].value), ensure_ascii=False, allow_nan=False)
    except (SyntaxError, TypeError, ValueError, RecursionError, MemoryError):
        return None
    return f"{json.dumps(call.keywords[0].arg)}: {value}"

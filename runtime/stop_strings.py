"""Stop strings, found in text that comes in pieces.

Every stop string is followed by its own Knuth-Morris-Pratt automaton, a character at a time: so a match is found where
it ends however the text is split, the work for a character does not grow with the string's length, and the automaton's
state is the length of what has to be held back.
"""

from collections.abc import Sequence
from dataclasses import dataclass

__all__ = ["StopMatch", "StopStrings"]


@dataclass(frozen=True, slots=True)
class StopMatch:
    """``end``: characters of the last piece up to and including the match's last one; ``string``: what matched."""

    string: str
    end: int


class StopStrings:
    """The match that ends first wins; of those that end together, the longest."""

    def __init__(self, strings: Sequence[str]) -> None:
        self._strings = sorted(set(strings), key=len, reverse=True)
        self._fallbacks = [_fallbacks(string) for string in self._strings]
        self._states = [0] * len(self._strings)

    def __bool__(self) -> bool:
        return bool(self._strings)

    @property
    def held_back(self) -> int:
        """How many characters at the end of the text so far may be the beginning of a stop string."""
        return max(self._states, default=0)

    def feed(self, piece: str, *, armed: bool = True) -> StopMatch | None:
        """Follow ``piece``; the first match in it, if any. What matches while not ``armed`` is passed over."""
        for end, character in enumerate(piece, 1):
            match: StopMatch | None = None
            for which, string in enumerate(self._strings):
                fallbacks = self._fallbacks[which]
                state = self._states[which]
                while state and string[state] != character:
                    state = fallbacks[state - 1]
                if string[state] == character:
                    state += 1
                if state == len(string):
                    state = fallbacks[state - 1]
                    if armed and match is None:
                        match = StopMatch(string, end)
                self._states[which] = state
            if match is not None:
                return match
        return None


def _fallbacks(string: str) -> list[int]:
    """For each prefix the length of its longest proper suffix that is a prefix too (Knuth, Morris, Pratt 1977)."""
    fallbacks = [0] * len(string)
    state = 0
    for i in range(1, len(string)):
        while state and string[i] != string[state]:
            state = fallbacks[state - 1]
        if string[i] == string[state]:
            state += 1
        fallbacks[i] = state
    return fallbacks

"""What a message is made of, a piece at a time; joined, pieces of a kind are the whole."""

from dataclasses import dataclass
from typing import Protocol

__all__ = ["CallArguments", "CallStart", "Content", "Piece", "PieceReader", "Reasoning", "split_at"]


@dataclass(frozen=True, slots=True)
class Reasoning:
    """The model thinks."""

    text: str


@dataclass(frozen=True, slots=True)
class Content:
    """The model says something to whom it talks with."""

    text: str


@dataclass(frozen=True, slots=True)
class CallStart:
    """The model calls a function; calls are counted from 0."""

    index: int
    name: str


@dataclass(frozen=True, slots=True)
class CallArguments:
    """More of a call's arguments: a JSON object's text."""

    index: int
    text: str


Piece = Reasoning | Content | CallStart | CallArguments


class PieceReader(Protocol):
    """Text in, pieces out. However the text is cut, the pieces joined are the same."""

    def feed(self, text: str) -> list[Piece]: ...

    def finish(self) -> list[Piece]:
        """What was held back: nothing follows."""


def split_at(text: str, markers: tuple[str, ...]) -> tuple[str, str, str]:
    """What stands before the first marker, the marker, and what follows it.

    Without a marker: what is settled, nothing, and what may be a marker's beginning.
    """
    places = [(place, -len(marker), marker) for marker in markers if (place := text.find(marker)) >= 0]
    if places:
        place, _, marker = min(places)
        return text[:place], marker, text[place + len(marker) :]
    longest = max(map(len, markers)) - 1
    for start in range(max(0, len(text) - longest), len(text)):
        if any(marker.startswith(text[start:]) for marker in markers):
            return text[:start], "", text[start:]
    return text, "", ""

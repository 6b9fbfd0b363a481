"""Where all choices come from: a seeded random generator that honours the hold-out rule."""

import random
from collections.abc import Sequence
from typing import TypeVar

from conversations.holdout import held_out

__all__ = ["Source"]

T = TypeVar("T")


class Source:
    """A seeded random generator that honours the hold-out rule.

    ``evaluation`` selects the side of the rule; ``pieces`` are the alphabetic tokens of the tokenizer, from which
    made-up words are assembled so that the letters inside every token can be learnt.
    """

    def __init__(self, seed: str, evaluation: bool = False, pieces: list[str] | None = None) -> None:
        self.random = random.Random(seed)  # noqa: S311 (reproducible data, no secrets)
        self.evaluation = evaluation
        self.pieces = pieces or []

    def pick(self, items: Sequence[T]) -> T:
        """One item, uniformly."""
        return items[int(self.random.random() * len(items))]

    def below(self, limit: int) -> int:
        """An integer from 0 to ``limit - 1``."""
        return int(self.random.random() * limit)

    def chance(self, probability: float) -> bool:
        """True with the given probability."""
        return self.random.random() < probability

    def admits(self, key: str) -> bool:
        """Whether a key lies on this source's side of the hold-out rule."""
        return held_out(key) == self.evaluation

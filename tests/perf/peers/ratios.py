"""How many times better one side is than another, when the machine is noisy.

Both sides run in turn, so a round's two values saw about the same machine. The logarithm of their ratio is what is
compared: its median over the rounds, and a percentile bootstrap of that median (Efron, 1979).
"""

import math
import random
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

__all__ = ["Ratio"]

_RESAMPLES = 10_000


@dataclass(frozen=True, slots=True)
class Ratio:
    """``of_medians``: median over median. ``paired``: the median of the rounds' ratios, with the ends of its 95%
    interval. Above 1 is better, whatever the quantity's direction."""

    of_medians: float
    paired: float
    low: float
    high: float

    @classmethod
    def of(cls, ours: Sequence[float], theirs: Sequence[float], *, higher_is_better: bool) -> "Ratio":
        """One value a round and side, both in the rounds' order, all above zero."""
        if len(ours) != len(theirs) or not ours:
            raise ValueError("a paired comparison needs as many values of one side as of the other, at least one")
        sign = 1.0 if higher_is_better else -1.0
        logs = [sign * math.log(a / b) for a, b in zip(ours, theirs, strict=True)]
        rng = random.Random(0)
        medians = sorted(statistics.median(rng.choices(logs, k=len(logs))) for _ in range(_RESAMPLES))
        return cls(
            of_medians=(statistics.median(ours) / statistics.median(theirs)) ** sign,
            paired=math.exp(statistics.median(logs)),
            low=math.exp(medians[round(0.025 * (_RESAMPLES - 1))]),
            high=math.exp(medians[round(0.975 * (_RESAMPLES - 1))]),
        )

    def __str__(self) -> str:
        return f"{self.of_medians:.2f}; {self.paired:.2f} [{self.low:.2f}, {self.high:.2f}]"

"""How many times as much one side costs as another: the median of paired log-ratios, with a bootstrap interval.

Of each trio there is one pair, so pairs share no process. Costs are never compared across trios: a machine that is
slow today is slow for all three sides of a trio, and the ratio does not see it. The median, because what disturbs a
process comes in rare, large blows (Efron and Tibshirani, An Introduction to the Bootstrap, 1993, ch. 13: percentile
intervals).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import exp, log, sqrt

import numpy as np

__all__ = ["Ratio", "log_ratios"]

_RESAMPLES = 2000


@dataclass(frozen=True, slots=True)
class Ratio:
    """``median`` of the ratios, 1 where both sides cost the same, and its interval of 95%, from ``low`` to ``high``."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, logs: Sequence[float]) -> "Ratio":
        """Of log-ratios, at least one. The same ones always give the same interval: resamples are drawn from one seed.

        Trios are resampled one by one: their ratios are not correlated with their neighbours' (DECISIONS.md), since
        what the machine does from minute to minute is in both of a ratio's sides.
        """
        values = np.asarray(logs, dtype=float)
        count = len(values)
        places = np.random.default_rng(0).integers(0, count, (_RESAMPLES, count))
        medians = np.median(values[places], axis=1)
        low, high = np.quantile(medians, (0.025, 0.975))
        return cls(exp(float(np.median(values))), exp(float(low)), exp(float(high)))

    @property
    def half_width(self) -> float:
        """Half of the interval's width, as a share."""
        return sqrt(self.high / self.low) - 1

    def __str__(self) -> str:
        """``+5.1% [+4.2, +6.0]``."""
        median, low, high = (100 * (value - 1) for value in (self.median, self.low, self.high))
        return f"{median:+.1f}% [{low:+.1f}, {high:+.1f}]"


def log_ratios(costs: Sequence[tuple[float, float, float]]) -> tuple[list[float], list[float]]:
    """Of trios' costs (base, double, new): the new side's over the base's, and the double's over the base's.

    The base's cost is the geometric mean of its two: half the noise of one, so the first are a little less noisy than
    the second, by which they are judged.
    """
    of_new = [log(new) - (log(base) + log(double)) / 2 for base, double, new in costs]
    of_double = [log(double) - log(base) for base, double, _ in costs]
    return of_new, of_double

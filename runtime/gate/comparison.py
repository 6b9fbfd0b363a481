"""What the trios say of one quantity."""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from pllm.runtime.gate.quantity import PRECISION, Quantity
from pllm.runtime.gate.ratio import Ratio, log_ratios

__all__ = ["Comparison"]

_TIMES_NOISE = 3


@dataclass(frozen=True, slots=True)
class Comparison:
    """``base`` and ``new`` are medians of costs, to be shown; ``ratio`` is the new side's to the base, ``noise`` that
    of the base to itself. ``pairs``: each trio's log-ratio and noise, for whoever draws them."""

    quantity: Quantity
    base: float
    new: float
    ratio: Ratio
    noise: Ratio
    pairs: tuple[tuple[float, float], ...]

    @classmethod
    def of(cls, quantity: Quantity, costs: Sequence[tuple[float, float, float]]) -> "Comparison":
        """Of the costs of at least one trio."""
        of_new, of_double = log_ratios(costs)
        return cls(
            quantity,
            statistics.median(cost for base, double, _ in costs for cost in (base, double)),
            statistics.median(new for _, _, new in costs),
            Ratio.of(of_new),
            Ratio.of(of_double),
            tuple(zip(of_new, of_double, strict=True)),
        )

    @property
    def threshold(self) -> float:
        """The share of the base by which the new side must cost more before anybody is alarmed."""
        return max(self.quantity.bound, _TIMES_NOISE * self.noise.half_width)

    @property
    def is_settled(self) -> bool:
        """Whether enough is known: neither interval is wider than it may be."""
        return max(self.noise.half_width, self.ratio.half_width) <= PRECISION

    @property
    def is_suspect(self) -> bool:
        """Whether the new side seems to cost more, beyond what noise could make."""
        return self.ratio.median > 1 + self.threshold and self.ratio.low > 1

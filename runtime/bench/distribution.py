"""Samples and what is said of them. Plain Python: a measurement does not import numpy for forty numbers."""

from collections.abc import Iterable
from dataclasses import dataclass
from math import floor, fsum

__all__ = ["Distribution"]


@dataclass(frozen=True, slots=True)
class Distribution:
    """Samples of one quantity, at least one, in the order in which they were taken."""

    samples: tuple[float, ...]

    def __post_init__(self) -> None:
        if not self.samples:
            raise ValueError("a distribution needs at least one sample")

    @classmethod
    def of(cls, samples: Iterable[float]) -> "Distribution | None":
        """None where there are no samples: a request of one token has no time between tokens."""
        taken = tuple(samples)
        return cls(taken) if taken else None

    def quantile(self, share: float) -> float:
        """The value that ``share`` of the samples do not exceed, 0 to 1, interpolated linearly between neighbours
        (type 7 of Hyndman and Fan, 1996: what numpy and ``vllm bench serve`` use)."""
        if not 0 <= share <= 1:
            raise ValueError(f"a share is from 0 to 1, not {share}")
        ordered = sorted(self.samples)
        place = share * (len(ordered) - 1)
        below = floor(place)
        above = min(below + 1, len(ordered) - 1)
        return ordered[below] + (place - below) * (ordered[above] - ordered[below])

    @property
    def mean(self) -> float:
        return fsum(self.samples) / len(self.samples)

    @property
    def median(self) -> float:
        return self.quantile(0.5)

    def summary(self) -> dict[str, float]:
        """What a report keeps where it does not keep the samples, in their unit."""
        shares = {"min": 0.0, "p5": 0.05, "p25": 0.25, "p50": 0.5, "p75": 0.75, "p90": 0.9, "p99": 0.99, "max": 1.0}
        summary = {name: round(self.quantile(share), 9) for name, share in shares.items()}
        return {"count": len(self.samples), "mean": round(self.mean, 9), **summary}

"""When a request's tokens came, and what follows from it. The definitions are those of ``vllm bench serve``.

sent          first chunk                       last chunk
 |----TTFT----|---ITL---|---ITL---| ... |---ITL---|
 |------------------- latency (E2EL) -------------|

TPOT = (latency - TTFT) / (output tokens - 1)
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from itertools import pairwise

from pllm.runtime.bench.distribution import Distribution
from pllm.runtime.errors import UserInputError

__all__ = ["RequestTiming", "ServiceTargets", "distributions", "goodput"]


@dataclass(frozen=True, slots=True)
class RequestTiming:
    """One finished request, in seconds of one monotonic clock.

    ``chunks``: when each piece of the answer came, at least one. In the library a piece is a token; over HTTP it is an
    event of the stream, which may carry several.
    """

    sent: float
    chunks: tuple[float, ...]
    num_output_tokens: int

    @property
    def ttft(self) -> float:
        """Time to first token: first chunk - sent."""
        return self.chunks[0] - self.sent

    @property
    def latency(self) -> float:
        """End to end: last chunk - sent."""
        return self.chunks[-1] - self.sent

    @property
    def tpot(self) -> float | None:
        """Time per output token after the first; None where there is no other."""
        if self.num_output_tokens < 2:
            return None
        return (self.latency - self.ttft) / (self.num_output_tokens - 1)

    @property
    def itl(self) -> tuple[float, ...]:
        """Inter-token latencies: the gaps between neighbouring chunks."""
        return tuple(later - earlier for earlier, later in pairwise(self.chunks))


@dataclass(frozen=True, slots=True)
class ServiceTargets:
    """What a request must keep to count as good, in seconds; None asks for nothing."""

    ttft: float | None = None
    tpot: float | None = None
    e2el: float | None = None

    @classmethod
    def parse(cls, words: Sequence[str]) -> "ServiceTargets":
        """``["ttft:500", "tpot:50"]``, in milliseconds. Raises UserInputError."""
        known = [field.name for field in fields(cls)]
        targets: dict[str, float] = {}
        for word in words:
            name, _, value = word.partition(":")
            try:
                milliseconds = float(value)
            except ValueError:
                milliseconds = -1.0
            if name not in known or not 0 < milliseconds < float("inf") or name in targets:
                raise UserInputError(
                    f"--goodput {word}: give each target once as NAME:MILLISECONDS, NAME one of {', '.join(known)}"
                )
            targets[name] = milliseconds / 1e3
        return cls(**targets)

    def met_by(self, timing: RequestTiming) -> bool:
        """Whether the request kept every target. A request of one token has no TPOT to miss."""
        found = ((self.ttft, timing.ttft), (self.tpot, timing.tpot), (self.e2el, timing.latency))
        return all(target is None or value is None or value <= target for target, value in found)


def goodput(timings: Iterable[RequestTiming], targets: ServiceTargets, duration: float) -> float:
    """Requests that met every target, a second."""
    return sum(map(targets.met_by, timings)) / duration


def distributions(timings: Sequence[RequestTiming]) -> dict[str, Distribution | None]:
    """TTFT, TPOT, ITL and latency over all requests, in seconds."""
    return {
        "ttft": Distribution.of(timing.ttft for timing in timings),
        "tpot": Distribution.of(timing.tpot for timing in timings if timing.tpot is not None),
        "itl": Distribution.of(gap for timing in timings for gap in timing.itl),
        "e2el": Distribution.of(timing.latency for timing in timings),
    }

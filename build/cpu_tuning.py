"""Tuning for a CPU: how many threads and how large pieces, by timing steps of the built program.

A candidate replaces what is there only where it is clearly faster, in turns with it and twice over: so builds on like
machines choose alike, and one that finds nothing keeps the defaults.
"""

import math
import statistics
import time
from collections.abc import Callable, Iterator, Sequence

import msgspec

from pllm.runtime.manifest import CpuTuning

__all__ = ["Times", "candidates", "tune"]

Times = Callable[[CpuTuning], Sequence[float]]
"""Runs each of a few steps once and says how long each took, in seconds."""

_GAIN = 0.03
_ROUNDS = 7
_HOPELESS_AFTER = 2
_TILING = ("streamed", "blocked", "rows")


def tune(
    start: CpuTuning,
    threads: Sequence[int],
    times: Times,
    *,
    seconds: float = 20.0,
    clock: Callable[[], float] = time.monotonic,
) -> CpuTuning:
    """The fastest tuning that was found from ``start``: first the number of threads, of ``threads``, then the sizes of
    pieces, each halved and doubled. Stops where the time is up."""
    end = clock() + seconds

    def is_late() -> bool:
        return clock() >= end

    best = start
    for field in ("threads", *_TILING):
        for candidate in candidates(best, field, threads):
            looks = (_is_faster(candidate, best, times, is_late) for _ in range(2))  # the second one all anew
            if all(looks):
                best = candidate
                if field != "threads":
                    break  # the other way can only be worse
    return best


def candidates(best: CpuTuning, field: str, threads: Sequence[int]) -> Iterator[CpuTuning]:
    """The alternatives to ``best`` in one field."""
    now = getattr(best, field)
    for value in threads if field == "threads" else (now - 1, now + 1):
        if value != now:
            yield msgspec.structs.replace(best, **{field: value})


def _is_faster(candidate: CpuTuning, best: CpuTuning, times: Times, is_late: Callable[[], bool]) -> bool:
    """In every round, and by the median clearly; in turns (A B B A). A round's ratio is the mean over the steps, of
    logarithms. What is late before it is clear is not faster."""
    if is_late():
        return False
    times(candidate)  # not counted: its first step finds nothing in the caches
    ratios: list[float] = []
    for number in range(_ROUNDS):
        if is_late():
            return False
        pair = (best, candidate) if number % 2 else (candidate, best)
        taken = {tuning: times(tuning) for tuning in pair}
        logs = [math.log(a / b) for a, b in zip(taken[candidate], taken[best], strict=True)]
        ratios.append(statistics.fmean(logs))
        if len(ratios) == _HOPELESS_AFTER and min(ratios) > -_GAIN:
            return False
    return statistics.median(ratios) < -_GAIN and max(ratios) < 0

"""The calibration kernel: the same work every time, so that a change of its duration is the machine's own.

It hashes half a mebibyte, on one core and out of the cache. Its fastest run during a trio says how fast the cores were:
their clock, and how much of them the machine below this one took. Copies of memory were tried beside it, and moved by
ten percent with neighbours, whom a trio's three sides suffer alike.
"""

import hashlib
import time
from collections.abc import Sequence
from math import log

__all__ = ["Calibration", "drift"]

_REPEATS = 5


class Calibration:
    """The kernel and what it reads."""

    def __init__(self) -> None:
        self._text = bytes(range(256)) * 2048

    def seconds(self) -> float:
        """The fastest of a few runs."""
        return min(self._once() for _ in range(_REPEATS))

    def _once(self) -> float:
        began = time.perf_counter()
        hashlib.sha256(self._text).digest()
        return time.perf_counter() - began


def drift(samples: Sequence[float], reference: float) -> float:
    """By how much the machine's speed differs from a reference's, as a log ratio: that of the fastest sample."""
    return abs(log(min(samples) / reference))

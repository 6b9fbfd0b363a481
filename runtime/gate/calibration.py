"""The calibration kernel: the same work every time, so that a change of its duration is the machine's own.

It hashes half a mebibyte on one core (the clock's part) and copies sixteen (the memory's part). Its fastest repeat says
how fast the machine is when nobody interrupts; a neighbour's time slices are not the machine's speed.
"""

import hashlib
import time
from collections.abc import Sequence
from math import log

import numpy as np

__all__ = ["Calibration", "drift"]

_REPEATS = 3


class Calibration:
    """The kernel and the memory that it works on."""

    def __init__(self) -> None:
        self._text = bytes(range(256)) * 2048
        self._source = np.arange(2 << 20, dtype=np.uint64)
        self._target = np.zeros_like(self._source)

    def seconds(self) -> float:
        """The fastest of a few runs."""
        return min(self._once() for _ in range(_REPEATS))

    def _once(self) -> float:
        began = time.perf_counter()
        hashlib.sha256(self._text).digest()
        np.copyto(self._target, self._source)
        return time.perf_counter() - began


def drift(samples: Sequence[float], reference: float) -> float:
    """By how much the machine's speed differs from a reference's, as a log ratio: that of the fastest sample."""
    return abs(log(min(samples) / reference))

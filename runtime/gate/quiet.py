"""Quiet steps: those in which the thread that runs them never had to wait for a core.

On a shared machine a step's duration says most of the company that it had. The kernel counts how long each thread was
runnable and not running (``/proc/thread-self/schedstat``, second field, nanoseconds; up to date whenever the thread
itself reads it). That wait is taken off a step's duration, and steps that hardly waited are believed first: after a
wait, caches are cold. It is exact for an engine of one thread, which is why the gate runs one unless told otherwise.
"""

import os
from collections.abc import Sequence
from contextlib import suppress

from pllm.runtime.bench.distribution import Distribution

__all__ = ["WAIT_SHARE", "RunWait", "quiet_duration", "wait_share"]

WAIT_SHARE = 0.02
"""Of a quiet step's duration, that its thread may have waited."""

_SHARE = 0.1


class RunWait:
    """How long the thread that made this has waited for a core since it began."""

    def __init__(self) -> None:
        self._file: int | None = None
        with suppress(OSError):  # a kernel that does not count: then no step seems to have waited
            self._file = os.open("/proc/thread-self/schedstat", os.O_RDONLY)

    def seconds(self) -> float:
        return 0.0 if self._file is None else int(os.pread(self._file, 64, 0).split()[1]) * 1e-9

    def close(self) -> None:
        if self._file is not None:
            os.close(self._file)
            self._file = None


def wait_share(seconds: Sequence[float], waits: Sequence[float]) -> float:
    """Of the time that steps took, the share that went in waiting for a core."""
    return sum(waits) / sum(seconds)


def quiet_duration(seconds: Sequence[float], waits: Sequence[float]) -> float:
    """How long a step takes when it is left alone: the first decile of quiet steps' durations, less their waits; of the
    quietest third's, where fewer were quiet.

    Not the median, which moves by percents with what neighbours do to caches and memory, though nobody waits; and not
    the least, which is one step's luck.
    """
    order = sorted(range(len(seconds)), key=lambda i: waits[i] / seconds[i])
    num_quiet = sum(wait <= WAIT_SHARE * each for each, wait in zip(seconds, waits, strict=True))
    chosen = order[: max(num_quiet, -(-len(order) // 3))]
    return Distribution(tuple(seconds[i] - waits[i] for i in chosen)).quantile(_SHARE)

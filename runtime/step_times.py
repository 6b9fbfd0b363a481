"""What decoding steps take while serving, beside what the build measured: the metric ``perf_ratio_vs_build``.

A step in which every sequence has one token is compared with the latency table's time for as many sequences, on the
line between the two nearest that were measured; steps that read prompts, and larger ones than were measured, are left
out. Both sides time the same thing, one call of the model runner. The ratio is that of the sums, of which older steps
count less and less: about the last hundred decide. The table was measured at short contexts (its rows say which), so
that long ones raise the ratio too, as a busy machine does.
"""

from collections.abc import Iterable, Sequence
from itertools import pairwise
from math import nan

from pllm.runtime.latencies import Latency
from pllm.runtime.step import ScheduledRow

__all__ = ["StepTimes"]

_KEPT = 0.99


class StepTimes:
    """``ratio``: above 1 where serving is slower than the table; NaN before the first step that could be compared."""

    def __init__(self, rows: Iterable[Latency]) -> None:
        measured = sorted((row.num_seqs, row.ms / 1e3) for row in rows if row.num_tokens == row.num_seqs)
        self._built = _line(measured)
        self._served_seconds = 0.0
        self._built_seconds = 0.0

    @property
    def ratio(self) -> float:
        return self._served_seconds / self._built_seconds if self._built_seconds else nan

    def note(self, rows: Sequence[ScheduledRow], seconds: float) -> None:
        """What a step took."""
        if len(rows) >= len(self._built) or not self._built[len(rows)]:
            return
        for row in rows:
            if len(row.token_ids) != 1:
                return
        self._served_seconds = _KEPT * self._served_seconds + seconds
        self._built_seconds = _KEPT * self._built_seconds + self._built[len(rows)]


def _line(measured: Sequence[tuple[int, float]]) -> list[float]:
    """Seconds for every number of sequences from the smallest measured to the largest; 0 for those below."""
    if not measured:
        return []
    first, _ = measured[0]
    seconds = [0.0] * first
    for (few, fast), (many, slow) in pairwise(measured):
        seconds += [fast + (slow - fast) * (count - few) / (many - few) for count in range(few, many)]
    return [*seconds, measured[-1][1]]

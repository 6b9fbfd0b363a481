"""How much of prompts a step computes, so that no step takes long: found from the steps before."""

from collections.abc import Iterable

from pllm.runtime.step import ScheduledRow

__all__ = ["LONGEST_STEP", "PromptPace"]

LONGEST_STEP = 0.5
"""Seconds. A request that is aborted holds its blocks until the step ends, and that is to be within a second."""

_FEWEST = 16  # tokens: less would read the weights more often than it is worth
_GROWTH = 1.25


class PromptPace:
    """A bound for the prompt tokens of a step. The latency table says where it begins; but a chunk late in a long
    context takes longer than an early one, and every one on a machine that others use too.
    """

    def __init__(self, most: int, longest: float = LONGEST_STEP) -> None:
        self._most = most
        self._longest = longest
        self.num_tokens = most

    def note(self, rows: Iterable[ScheduledRow], seconds: float) -> None:
        """What a step took."""
        computed = sum(len(row.token_ids) for row in rows if len(row.token_ids) > 1)
        if not computed:
            return
        if seconds > self._longest:
            self.num_tokens = max(min(_FEWEST, self._most), int(computed * self._longest / seconds))
        elif computed >= self.num_tokens and seconds * _GROWTH < self._longest:
            self.num_tokens = min(self._most, int(self.num_tokens * _GROWTH) + 1)

"""History slots: which running sequence has which row of the device's history of tokens, for penalties.

A row follows its sequence on the device alone, each token counted as it is drawn. It is written anew wherever the CPU
knows all tokens of a sequence, as after a preemption; so a slot can be given away as soon as its sequence does not run.
"""

from collections.abc import Iterable

__all__ = ["HistorySlots"]


class HistorySlots:
    """As many slots as sequences may run at once."""

    def __init__(self, count: int) -> None:
        self._free = list(range(count - 1, -1, -1))
        self._slots: dict[int, int] = {}

    def keep(self, seq_ids: Iterable[int]) -> None:
        """These run on; all others' slots are free."""
        running = set(seq_ids)
        for seq_id in [seq_id for seq_id in self._slots if seq_id not in running]:
            self._free.append(self._slots.pop(seq_id))

    def of(self, seq_id: int) -> int:
        """The sequence's slot, which it gets where it has none. There is one for every sequence that runs."""
        if seq_id not in self._slots:
            self._slots[seq_id] = self._free.pop()
        return self._slots[seq_id]

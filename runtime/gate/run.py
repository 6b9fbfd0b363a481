"""A run of the gate: trios until enough is known, then fresh ones that vote on whatever looks slower.

Nothing here knows what a trio measures; the proof of the gate runs this on recorded ones.

What keeps it from crying wolf, in the order in which it works:

1. sides take turns within a trio, so what the machine does is done to all of them (`trio`), and quiet steps count;
2. a quantity is suspected beyond ``max(2%, 3 x half the width of base against base)`` alone (`comparison`);
3. trios during which the calibration kernel says that the machine itself ran at another speed do not count;
4. what is suspected is measured again by four voters, each with trios of its own, and three of them must agree.

What cannot be settled within the time is void, which is no pass.
"""

import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from math import exp
from statistics import median

from pllm.runtime.gate.calibration import drift
from pllm.runtime.gate.check import Check, Verdict
from pllm.runtime.gate.comparison import Comparison
from pllm.runtime.gate.quantity import PRECISION, Quantity
from pllm.runtime.gate.ratio import log_ratios
from pllm.runtime.gate.trio import Trio

__all__ = ["MOST_DRIFT", "QUORUM", "VOTERS", "GateRun", "GateSettings", "Measure", "Vote"]

MOST_DRIFT = 0.05
QUORUM, VOTERS = 3, 4
_MORE_TRIOS = 20  # a twentieth more of them, and it is worth while to look again
_MORE_WAITING = 0.1  # of its time, that the new side may wait for cores beyond the base

Measure = Callable[[int, Collection[str]], Trio]
"""A trio, by its number (which shifts the order of turns) and the names of the quantities that are wanted; others may
be there too, as each process's beginning and end give some."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GateSettings:
    """``seconds`` to settle all quantities in, votes not counted; ``least`` trios for anything to be settled;
    ``ballot`` trios of each voter."""

    seconds: float = 420.0
    least: int = 6
    ballot: int = 3


@dataclass(frozen=True, slots=True)
class Vote:
    """How each voter saw a suspect: the new side's cost over the base's. ``bound`` is what it must exceed."""

    ratios: tuple[float, ...]
    bound: float

    @property
    def num_agreed(self) -> int:
        return sum(ratio > self.bound for ratio in self.ratios)

    @property
    def verdict(self) -> Verdict:
        """Void where voters are missing and the others do not decide it."""
        if self.num_agreed >= QUORUM:
            return Verdict.REGRESSION
        if len(self.ratios) - self.num_agreed > VOTERS - QUORUM:
            return Verdict.PASS
        return Verdict.VOID


@dataclass(frozen=True, slots=True)
class GateRun:
    """What came out. ``votes``: on each suspect, by its name; ``trios``: those that count; ``num_drifted``: how many do
    not; ``seconds``: what all of it took."""

    settings: GateSettings
    comparisons: tuple[Comparison, ...]
    votes: Mapping[str, Vote]
    trios: tuple[Trio, ...]
    num_drifted: int
    seconds: float

    @classmethod
    def of(
        cls,
        measure: Measure,
        quantities: Sequence[Quantity],
        settings: GateSettings,
        *,
        clock: Callable[[], float] = time.monotonic,
        said: Callable[[str], None] = lambda _: None,
    ) -> "GateRun":
        """Measure. Raises what ``measure`` raises."""
        began = clock()
        sample = _Sample(measure, quantities)
        open_names = [quantity.name for quantity in quantities]
        enough = settings.least
        while open_names and clock() - began < settings.seconds:
            sample.take(open_names)
            count = len(sample.kept)
            is_enough = count >= enough
            if is_enough:
                # All of them once more at the end: which trios count may have changed for what was settled before.
                open_names = sample.unsettled(open_names) or sample.unsettled([each.name for each in quantities])
            later = max(settings.least, count + 1 + count // _MORE_TRIOS)
            enough = later if is_enough else min(enough, later)  # sooner where trios that counted no longer do
            said(f"{count} trios in {clock() - began:.0f} s, {len(open_names)} quantities to settle")
        comparisons = sample.comparisons()
        votes: Mapping[str, Vote] = {}
        suspects = [each for each in comparisons if each.is_suspect and len(each.pairs) >= settings.least]
        if suspects:
            said(f"looks slower, and is put to the vote: {', '.join(each.quantity.name for each in suspects)}")
            votes = _votes(sample, suspects, settings.ballot)
        drifted = len(sample.taken) - len(sample.kept)
        return cls(settings, tuple(comparisons), votes, tuple(sample.kept), drifted, clock() - began)

    def checks(self) -> list[Check]:
        """One for each quantity, one for the machine, one for the company that the sides had."""
        return [*map(self._check, self.comparisons), self._machine(), self._company()]

    def _check(self, found: Comparison) -> Check:
        quantity = found.quantity
        told = f"{found.ratio}; base against itself {found.noise}; bound {100 * found.threshold:+.1f}%"
        vote = self.votes.get(quantity.name)
        verdict = Verdict.PASS
        if vote is not None:
            verdict = vote.verdict
            told += f"; {vote.num_agreed} of {len(vote.ratios)} fresh runs agree"
        if verdict is Verdict.PASS and not (found.is_settled and len(found.pairs) >= self.settings.least):
            verdict = Verdict.VOID
            told += f"; not known to {PRECISION:.0%} after {len(found.pairs)} trios"
        return Check(quantity.name, quantity.shown(found.base), quantity.shown(found.new), verdict, told, quantity.unit)

    def _machine(self) -> Check:
        """Void where the machine's own speed was another one during most trios."""
        total = len(self.trios) + self.num_drifted
        told = f"{self.num_drifted} of {total} trios at another speed than the median's, by more than {MOST_DRIFT:.0%}"
        verdict = Verdict.VOID if not self.trios or self.num_drifted > len(self.trios) else Verdict.PASS
        return Check("machine", None, None, verdict, told)

    def _company(self) -> Check:
        """Void where the new side waited for cores much more than the base. No neighbour prefers one of three processes
        that take turns: threads of its own stand in its way, and what they cost has been taken off as waiting.
        """
        # The first ones: later trios may do no steps at all.
        first = [trio.waits for trio in self.trios[: self.settings.least]] or [(0.0, 0.0, 0.0)]
        base = median((base + double) / 2 for base, double, _ in first)
        new = median(new for _, _, new in first)
        fine = new <= base + _MORE_WAITING
        told = "" if fine else "its steps wait for cores far more than the base's: look for busy threads of its own"
        return Check("waiting", 100 * base, 100 * new, Verdict.PASS if fine else Verdict.VOID, told, "% of the time")


class _Sample:
    """The trios taken so far, and which of them count."""

    def __init__(self, measure: Measure, quantities: Sequence[Quantity]) -> None:
        self._measure = measure
        self._quantities = quantities
        self._number = 0
        self.taken: list[Trio] = []

    @property
    def kept(self) -> list[Trio]:
        """Those during which the machine ran as fast as it mostly did."""
        reference = self._reference() if self.taken else 0.0
        return [trio for trio in self.taken if drift(trio.calibrations, reference) <= MOST_DRIFT]

    def take(self, names: Collection[str]) -> None:
        self.taken.append(self._fresh(names))

    def comparisons(self, names: Collection[str] | None = None) -> list[Comparison]:
        """Of the quantities, or those of these names, that at least one trio tells of, in their order."""
        kept = self.kept
        found = (
            (quantity, [trio.costs[quantity.name] for trio in kept if quantity.name in trio.costs])
            for quantity in self._quantities
            if names is None or quantity.name in names
        )
        return [Comparison.of(quantity, costs) for quantity, costs in found if costs]

    def unsettled(self, names: Collection[str]) -> list[str]:
        """Those of which not enough is known."""
        return [each.quantity.name for each in self.comparisons(names) if not each.is_settled]

    def ballot(self, names: Collection[str], size: int) -> list[Trio]:
        """``size`` fresh trios that count; fewer where the machine is too restless for them."""
        fresh: list[Trio] = []
        for _ in range(2 * size):
            trio = self._fresh(names)
            if drift(trio.calibrations, self._reference()) <= MOST_DRIFT:
                fresh.append(trio)
            if len(fresh) == size:
                break
        return fresh

    def _fresh(self, names: Collection[str]) -> Trio:
        trio = self._measure(self._number, names)
        self._number += 1
        return trio

    def _reference(self) -> float:
        """What the calibration kernel mostly took."""
        return median(min(each.calibrations) for each in self.taken)


def _votes(sample: _Sample, suspects: Sequence[Comparison], size: int) -> dict[str, Vote]:
    """Each voter sees fresh trios of what is still undecided."""
    votes = {each.quantity.name: Vote((), 1 + each.threshold) for each in suspects}
    for _ in range(VOTERS):
        undecided = [name for name, vote in votes.items() if vote.verdict is Verdict.VOID]
        if not undecided:
            break
        trios = sample.ballot(undecided, size)
        if len(trios) < size:
            break
        for name in undecided:
            of_new, _ = log_ratios([trio.costs[name] for trio in trios])
            vote = votes[name]
            votes[name] = Vote((*vote.ratios, exp(median(of_new))), vote.bound)
    return votes

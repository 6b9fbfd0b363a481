"""Trials in turn, and what they come to."""

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from .metrics import METRICS, Metric
from .ratios import Ratio
from .sides import Side, Trial

__all__ = ["Comparison", "order_of_round"]


def order_of_round(sides: Sequence[Side], number: int) -> list[Side]:
    """A B C in even rounds, C B A in odd ones: what drifts during two rounds falls on all sides alike."""
    return list(sides) if number % 2 == 0 else list(reversed(sides))


@dataclass
class Comparison:
    """Trials by workload and side, one a round."""

    sides: Sequence[Side]
    trials: dict[str, dict[str, list[Trial]]] = field(default_factory=dict)

    def run(self, workload: str, rounds: int, trial: Callable[[Side, str], Trial], said: Callable[[str], None]) -> None:
        """Run a workload on every side that can run it, ``rounds`` times, interleaved."""
        sides = [side for side in self.sides if workload in side.workloads]
        kept: dict[str, list[Trial]] = {side.label: [] for side in sides}
        for number in range(rounds):
            for side in order_of_round(sides, number):
                found = trial(side, workload)
                kept[side.label].append(found)
                shown = [metric for metric in METRICS.values() if metric.name in found.metrics]
                figures = ", ".join(f"{m.label} {found.metrics[m.name] * m.scale:.4g} {m.unit}" for m in shown)
                said(f"{workload} round {number + 1} of {rounds}, {side.label}: {figures}; others: {found.others:.0%}")
        self.trials[workload] = kept

    def values(self, workload: str, label: str, metric: Metric) -> list[float]:
        """One value a round; empty where the side has no such quantity."""
        trials = self.trials[workload].get(label, [])
        return [trial.metrics[metric.name] for trial in trials if metric.name in trial.metrics]

    def ratio(self, workload: str, ours: str, theirs: str, metric: Metric) -> Ratio | None:
        """How many times better ``ours`` is; None where one of the two has no such quantity."""
        mine, other = self.values(workload, ours, metric), self.values(workload, theirs, metric)
        if not metric.compared or not mine or not other:
            return None
        return Ratio.of(mine, other, higher_is_better=metric.higher_is_better)

    def agreement(self, workload: str, ours: str, theirs: str) -> float | None:
        """Share of a workload's tokens that both sides made alike, each request counted up to its first difference.

        Random weights have near ties, and a side that sums in another order may take the other token there: nobody is
        wrong, and what follows is another text. None where one of the two made no tokens.
        """
        sides = [self.trials[workload].get(label) for label in (ours, theirs)]
        if not all(sides) or not all(trials[-1].token_ids for trials in sides if trials):
            return None
        mine, other = (trials[-1].token_ids for trials in sides if trials)
        same = 0
        for a, b in zip(mine, other, strict=True):
            same += next((i for i, (x, y) in enumerate(zip(a, b, strict=True)) if x != y), len(a))
        return same / sum(map(len, mine))

    def table(self) -> str:
        """Markdown: a row a workload, quantity and side; a column for each artifact's ratio to the row's side."""
        ours = [side.label for side in self.sides if side.is_ours]
        head = [
            "workload",
            "quantity",
            "side",
            "median",
            "least to most",
            *(f"{label} is better, times" for label in ours),
        ]
        rows = [head, ["---", "---", "---", "---:", "---:", *("---:" for _ in ours)]]
        for workload, kept in self.trials.items():
            for metric in METRICS.values():
                for label in kept:
                    values = [value * metric.scale for value in self.values(workload, label, metric)]
                    if not values:
                        continue
                    ratios = [None if label in ours else self.ratio(workload, mine, label, metric) for mine in ours]
                    rows.append(
                        [
                            *(workload, f"{metric.label}, {metric.unit}", label, _figure(statistics.median(values))),
                            f"{_figure(min(values))} to {_figure(max(values))}",
                            *(str(ratio) if ratio else "" for ratio in ratios),
                        ]
                    )
        return "\n".join(f"| {' | '.join(row)} |" for row in rows)

    @property
    def others(self) -> list[float]:
        """Of every trial, the share of the cores that everybody else took."""
        return [trial.others for kept in self.trials.values() for trials in kept.values() for trial in trials]

    @property
    def versions(self) -> dict[str, str]:
        """Of everything that ran."""
        found: dict[str, str] = {}
        for kept in self.trials.values():
            for trials in kept.values():
                for trial in trials:
                    found.update(trial.versions)
        return found


def _figure(value: float) -> str:
    return f"{value:,.0f}" if value >= 1000 else f"{value:.3g}" if value < 100 else f"{value:.0f}"

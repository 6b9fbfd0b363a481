"""What a gate leaves behind: a table for the terminal, Markdown for a pull request, JSON for whoever compares."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass

import msgspec
from rich.markup import escape
from rich.table import Table

from pllm.runtime.bench.facts import MachineFacts
from pllm.runtime.gate.check import Check, Verdict, verdict_of
from pllm.runtime.gate.facts import Facts
from pllm.runtime.gate.run import GateRun

__all__ = ["FORMAT_VERSION", "GateReport"]

FORMAT_VERSION = 1
"""Of the JSON document; raised when a field changes its meaning."""

_MARKS = {Verdict.PASS: "✓", Verdict.REGRESSION: "✗", Verdict.VOID: "?"}
_COLOURS = {Verdict.PASS: "green", Verdict.REGRESSION: "red", Verdict.VOID: "yellow"}


@dataclass(frozen=True, slots=True)
class GateReport:
    """``sides``: what each side said of itself, by its label, the base first; ``run``: None where nothing was timed."""

    sides: Mapping[str, Facts]
    checks: tuple[Check, ...]
    run: GateRun | None
    options: Mapping[str, object]
    machine: MachineFacts
    date: str

    @property
    def verdict(self) -> Verdict:
        return verdict_of(self.checks)

    @property
    def sentence(self) -> str:
        """The verdict, and what it is for."""
        verdict = self.verdict
        names = ", ".join(check.name for check in self.checks if check.verdict is verdict)
        if verdict is Verdict.REGRESSION:
            return f"Regression: {names}."
        if verdict is Verdict.VOID:
            return f"Void, which is no pass: nothing can be said of {names or 'anything'}."
        return f"Pass: none of {len(self.checks)} checks got worse by more than its bound."

    def markdown(self) -> str:
        """For a pull request: the sentence, what is not fine, and all checks folded away."""
        verdict = self.verdict
        told = [check for check in self.checks if check.verdict is not Verdict.PASS]
        lines = [f"### {_MARKS[verdict]} pllm gate: {verdict.value}", "", self.sentence, ""]
        if told:
            lines += [*_markdown_table(told), ""]
        lines += ["<details><summary>All checks</summary>", "", *_markdown_table(self.checks), "", *self.notes, ""]
        return "\n".join([*lines, "</details>", ""])

    def table(self) -> Table:
        """For the terminal: what is not the same on both sides."""
        told = [check for check in self.checks if check.verdict is not Verdict.PASS or check.reason != "the same"]
        same = len(self.checks) - len(told)
        table = Table(caption=f"{same} more are the same on both sides" if same else None)
        for column in ("", "what", "base", "new", "unit", "why"):
            table.add_column(column, justify="right" if column in ("base", "new") else "left", overflow="fold")
        for check in told:
            mark = f"[{_COLOURS[check.verdict]}]{_MARKS[check.verdict]}[/]"
            cells = (check.name, figure(check.base), figure(check.new), check.unit, check.reason)
            table.add_row(mark, *map(escape, cells))
        return table

    @property
    def notes(self) -> list[str]:
        """How it was measured, in sentences."""
        if not self.sides:
            return [self.machine.line]  # of files that were measured elsewhere, it may be
        base, new = self.sides
        lines = [f"Base: {base}. New: {new}. {self.machine.line}."]
        if self.run is not None:
            lines.append(
                f"{len(self.run.trios)} trios of fresh processes (base, base again, new) in {self.run.seconds:.0f} s, "
                "taking turns; medians of their ratios with bootstrap intervals of 95%."
            )
        return lines

    def document(self) -> str:
        """JSON: costs in seconds and bytes, ratios as the new side's cost over the base's."""
        run = self.run
        timings = [] if run is None else run.comparisons
        found = {
            "format_version": FORMAT_VERSION,
            "measurement": "gate",
            "date": self.date,
            "machine": self.machine.as_dict(),
            "sides": {label: msgspec.to_builtins(facts) for label, facts in self.sides.items()},
            "options": dict(self.options),
            "verdict": self.verdict.value,
            "checks": [asdict(check) for check in self.checks],
            "timings": [
                {
                    "name": each.quantity.name,
                    "base": each.base,
                    "new": each.new,
                    "ratio": asdict(each.ratio),
                    "noise": asdict(each.noise),
                    "threshold": each.threshold,
                    "settled": each.is_settled,
                    "pairs": each.pairs,
                }
                for each in timings
            ],
            "votes": {} if run is None else {name: asdict(vote) for name, vote in run.votes.items()},
            "calibrations": [] if run is None else [trio.calibrations for trio in run.trios],
            "num_drifted": 0 if run is None else run.num_drifted,
        }
        return msgspec.json.format(msgspec.json.encode(found), indent=1).decode() + "\n"


def figure(value: float | str | None) -> str:
    """Three or four figures, whatever the size; whole numbers whole."""
    if value is None or isinstance(value, str):
        return value or ""
    if isinstance(value, int) or abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:.{3 if abs(value) < 1 else 2 if abs(value) < 100 else 1}f}"


def _markdown_table(checks: "tuple[Check, ...] | list[Check]") -> list[str]:
    rows = ["| | what | base | new | | why |", "| --- | --- | ---: | ---: | --- | --- |"]
    for check in checks:
        cells = (check.name, figure(check.base), figure(check.new), check.unit, check.reason)
        told = (cell.replace("|", "\\|").replace("\n", " ") for cell in cells)
        rows.append(f"| {_MARKS[check.verdict]} | {' | '.join(told)} |")
    return rows

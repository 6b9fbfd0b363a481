"""What a measurement leaves behind: a table for the reader, JSON for whoever compares."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import msgspec
from rich.console import Console
from rich.table import Table

from pllm.runtime.bench.distribution import Distribution
from pllm.runtime.bench.facts import MachineFacts, now
from pllm.runtime.errors import UserInputError

__all__ = ["QUARTILES", "Report", "Row", "check_target", "quantile_table", "say"]

QUARTILES = {"p25": 0.25, "median": 0.5, "p75": 0.75}

FORMAT_VERSION = 1
"""Of the JSON document; raised when a field changes its meaning."""


@dataclass(frozen=True, slots=True)
class Row:
    """One quantity of a table: its name, its samples, and what to multiply them by to have them in ``unit``."""

    name: str
    values: Distribution | None
    unit: str
    scale: float = 1.0


@dataclass(frozen=True, slots=True)
class Report:
    """``results`` are in seconds, tokens a second and bytes; ``subject`` says what was measured."""

    measurement: str
    title: str
    subject: Mapping[str, object]
    options: Mapping[str, object]
    results: Mapping[str, object]
    machine: MachineFacts
    tables: tuple[Table, ...]
    notes: tuple[str, ...] = ()

    def publish(self, target: Path | None) -> None:
        """Print the tables on standard output; write the JSON document where a target is given."""
        console = Console(highlight=False)
        console.print(f"[bold]{self.title}[/]", soft_wrap=True)
        for table in self.tables:
            console.print(table)
        for note in (*self.notes, self.machine.line):
            console.print(note, soft_wrap=True)
        if target is not None:
            target.write_bytes(msgspec.json.format(msgspec.json.encode(self._document()), indent=1) + b"\n")

    def _document(self) -> dict[str, object]:
        return {
            "format_version": FORMAT_VERSION,
            "measurement": self.measurement,
            "date": now(),
            "machine": self.machine.as_dict(),
            "subject": self.subject,
            "options": self.options,
            "results": {
                name: value.summary() if isinstance(value, Distribution) else value
                for name, value in self.results.items()
            },
        }


def quantile_table(rows: list[Row], shares: Mapping[str, float]) -> Table:
    """One row a quantity, one column a share (``{"median": 0.5}``), the mean and the number of samples beside them."""
    table = Table()
    table.add_column("")
    table.add_column("unit")
    for name in (*shares, "mean", "samples"):
        table.add_column(name, justify="right")
    for row in rows:
        if row.values is None:
            continue
        cells = [row.values.quantile(share) for share in shares.values()] + [row.values.mean]
        shown = [_figure(cell * row.scale) for cell in cells]
        table.add_row(row.name, row.unit, *shown, str(len(row.values.samples)))
    return table


def check_target(target: Path | None) -> None:
    """Refuse, before minutes are spent, a JSON file that could not be written. Raises UserInputError."""
    if target is None:
        return
    folder = target.parent
    if target.is_dir() or not folder.is_dir() or not os.access(target if target.exists() else folder, os.W_OK):
        raise UserInputError(f"--json {target} cannot be written: give a file in a folder that exists")


def say(text: str) -> None:
    """A line on standard error between two passes. Nothing is drawn while one runs: a spinner takes its core's time."""
    Console(stderr=True, highlight=False).print(text, soft_wrap=True)


def _figure(value: float) -> str:
    """Three or four figures, whatever the size."""
    if abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:.{3 if abs(value) < 1 else 2 if abs(value) < 100 else 1}f}"

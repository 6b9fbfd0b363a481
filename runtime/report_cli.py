"""``pllm report``: how figures went over time, machine by machine, in the terminal or as one HTML file."""

from argparse import ArgumentParser, Namespace
from collections.abc import Sequence
from html import escape
from itertools import groupby
from pathlib import Path

from rich.console import Console
from rich.markup import escape as plain
from rich.table import Table

from pllm.runtime.errors import UserInputError
from pllm.runtime.history import Trend, default_history, entry_of, read_history, trends, write_entry

__all__ = ["add_arguments", "main"]

_BARS = "▁▂▃▄▅▆▇█"
_MOST_BARS = 24
_WIDTH, _HEIGHT, _EDGE = 240, 40, 4
_STYLE = """
:root { color-scheme: light dark } body { font: 15px/1.5 system-ui, sans-serif; max-width: 62rem; margin: 2rem auto;
padding: 0 1rem } table { border-collapse: collapse; width: 100% } td, th { padding: .3rem .6rem; text-align: left;
border-bottom: 1px solid #8884 } .number { text-align: right; font-variant-numeric: tabular-nums }
polyline { fill: none; stroke: currentColor; stroke-width: 1.5 } circle { fill: currentColor } p { opacity: .7 }
"""


def add_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("documents", nargs="*", type=Path, metavar="FILE", help="add these (pllm bench, gate: --json)")
    parser.add_argument("--history", type=Path, metavar="FILE", help="where it is kept (the user's cache folder)")
    parser.add_argument("--machine", metavar="ID", help="only this machine")
    parser.add_argument("--html", type=Path, metavar="FILE", help="write it there, too")


def main(arguments: Namespace) -> int:
    """Add, then show. Raises UserInputError (2) for a file that is no report, and for a history without any."""
    history = arguments.history or default_history()
    entries = [entry_of(path) for path in arguments.documents]
    added = sum(write_entry(history, entry) for entry in entries)
    console = Console(highlight=False)
    if entries:
        console.print(f"{added} of {len(entries)} added to {history}", soft_wrap=True, markup=False)
    wanted = [each for each in read_history(history) if arguments.machine in (None, each.machine)]
    if not wanted:
        raise UserInputError(f"{history} holds nothing to report: add what pllm bench or pllm gate wrote with --json")
    found = list(trends(wanted))
    for (machine, cpu, measurement, subject), each in groupby(found, _group):
        title = f"{measurement} of {subject} on {cpu} ({machine})"
        console.print(_table(title, list(each)))
    if arguments.html is not None:
        try:
            arguments.html.write_text(_page(found), encoding="utf-8")
        except OSError as error:
            raise UserInputError(f"--html {arguments.html} cannot be written: {error.strerror}") from None
    return 0


def _group(trend: Trend) -> tuple[str, str, str, str]:
    return trend.machine, trend.cpu, trend.measurement, trend.subject


def _table(title: str, found: Sequence[Trend]) -> Table:
    table = Table(title=plain(title), title_justify="left")
    table.add_column("")
    for column in ("times", "first", "last", "change"):
        table.add_column(column, justify="right")
    table.add_column("")
    for trend in found:
        first, last = f"{trend.values[0]:.6g}", f"{trend.values[-1]:.6g}"
        table.add_row(plain(trend.name), str(len(trend.values)), first, last, _change(trend), _bars(trend.values))
    return table


def _change(trend: Trend) -> str:
    return "" if trend.change is None or len(trend.values) == 1 else f"{100 * (trend.change - 1):+.1f}%"


def _bars(values: Sequence[float]) -> str:
    shown = values[-_MOST_BARS:]
    low, room = min(shown), max(shown) - min(shown)
    return "".join(_BARS[int((value - low) / room * (len(_BARS) - 1)) if room else 0] for value in shown)


def _page(found: Sequence[Trend]) -> str:
    """One file, which needs nothing and asks nobody."""
    parts = []
    for (machine, cpu, measurement, subject), each in groupby(found, _group):
        rows = "".join(_row(trend) for trend in each)
        parts.append(
            f"<h2>{escape(measurement)} of {escape(subject)}</h2><p>{escape(cpu)} ({escape(machine)})</p><table><tr>"
            '<th></th><th class="number">first</th><th class="number">last</th><th class="number">change</th>'
            f"<th>over time</th></tr>{rows}</table>"
        )
    return (
        '<!doctype html><html lang="en"><meta charset="utf-8"><title>pllm report</title>'
        f"<style>{_STYLE}</style><h1>pllm report</h1>{''.join(parts)}</html>\n"
    )


def _row(trend: Trend) -> str:
    numbers = (f"{trend.values[0]:.6g}", f"{trend.values[-1]:.6g}", _change(trend))
    cells = "".join(f'<td class="number">{number}</td>' for number in numbers)
    return f"<tr><td>{escape(trend.name)}</td>{cells}<td>{_plot(trend)}</td></tr>"


def _plot(trend: Trend) -> str:
    low, room = min(trend.values), max(trend.values) - min(trend.values)
    step = (_WIDTH - 2 * _EDGE) / max(1, len(trend.values) - 1)
    places = [
        (_EDGE + i * step, _HEIGHT - _EDGE - (value - low) / room * (_HEIGHT - 2 * _EDGE) if room else _HEIGHT / 2)
        for i, value in enumerate(trend.values)
    ]
    line = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
    marks = "".join(
        f'<circle cx="{x:.1f}" cy="{y:.1f}" r="2"><title>{escape(date)}: {value:.6g}</title></circle>'
        for (x, y), date, value in zip(places, trend.dates, trend.values, strict=True)
    )
    return f'<svg width="{_WIDTH}" height="{_HEIGHT}" role="img"><polyline points="{line}"/>{marks}</svg>'

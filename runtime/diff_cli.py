"""``pllm diff``: what changed between two artifacts, in tables. Nothing is loaded."""

from argparse import ArgumentParser, Namespace
from dataclasses import asdict

import msgspec
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from pllm.runtime.artifact import Artifact
from pllm.runtime.artifact_diff import Plain, Section, diff_artifacts

__all__ = ["add_arguments", "main"]


def add_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("before", metavar="A", help="an artifact")
    parser.add_argument("after", metavar="B", help="another, or a later one")
    parser.add_argument("--json", action="store_true", help="print every change as JSON")


def main(arguments: Namespace) -> int:
    """Exit code 0, whatever differs; ArtifactError (4) for what is no artifact."""
    sections = diff_artifacts(Artifact.read(arguments.before), Artifact.read(arguments.after))
    if arguments.json:
        print(msgspec.json.format(msgspec.json.encode([asdict(section) for section in sections]), indent=1).decode())
        return 0
    console = Console(highlight=False)
    alike = []
    for section in sections:
        if section.changes:
            console.print(_table(section, arguments.before, arguments.after))
        elif not section.note or section.same:
            alike.append(section.title)
        if section.note and not section.same and not section.changes:
            console.print(f"{section.title}: {section.note}", soft_wrap=True)
    console.print(f"alike: {', '.join(alike) or 'nothing'}", soft_wrap=True)
    return 0


def _table(section: Section, before: str, after: str) -> Table:
    title = f"{section.title} ({len(section.changes)} differ, {section.same} are alike)"
    table = Table(title=title, title_justify="left", caption=section.note or None, caption_justify="left")
    table.add_column("")
    for side in (before, after):
        table.add_column(escape(side), overflow="fold")
    table.add_column("", justify="right")
    for change in section.changes:
        ratio = "" if change.ratio is None else f"{100 * (change.ratio - 1):+.1f}%"
        table.add_row(escape(change.what), _shown(change.before), _shown(change.after), ratio)
    return table


def _shown(value: Plain) -> str:
    if value is None:
        return "-"
    return escape(f"{value:,}" if isinstance(value, (int, float)) and not isinstance(value, bool) else str(value))

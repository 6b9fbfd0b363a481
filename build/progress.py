"""The build's progress: each stage with its time and its decisions, live in a terminal and as plain lines elsewhere."""

import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

from rich.console import Console
from rich.markup import escape
from rich.status import Status

__all__ = ["Progress", "StageProgress", "format_seconds"]


class StageProgress:
    """A running stage, as it sees its own progress."""

    def __init__(self, console: Console, name: str, status: Status | None) -> None:
        self._console = console
        self._name = name
        self._status = status

    def say(self, decision: str) -> None:
        """Print what the stage decided or found; it stays on the screen."""
        self._console.print(f"  {'':<12} {escape(decision)}", highlight=False, soft_wrap=True)

    def show(self, moment: str) -> None:
        """What is happening right now; gone with the next call, and not shown outside a terminal."""
        if self._status is not None:
            self._status.update(f"[bold]{self._name}[/] {escape(moment)}")


class Progress:
    """The stages of one build, on standard error: standard output is left to what a script would read."""

    def __init__(self, console: Console | None = None) -> None:
        self.console = console or Console(stderr=True, highlight=False)
        self._began = time.monotonic()
        self._times: list[tuple[str, float]] = []

    @contextmanager
    def stage(self, name: str, *, live: bool = True) -> Iterator[StageProgress]:
        """Run a stage: its name is shown first, then what it says, then its time. ``live=False`` where something else
        (a download) draws on the terminal meanwhile."""
        live = live and self.console.is_terminal
        began = time.monotonic()
        status = self.console.status(f"[bold]{name}[/]") if live else None
        shown: AbstractContextManager[object] = status if status is not None else nullcontext()
        if not live:
            self.console.print(f"· {name}")
        with shown:
            yield StageProgress(self.console, name, status)
        seconds = time.monotonic() - began
        self._times.append((name, seconds))
        self.console.print(f"[green]✓[/] {name:<12} {format_seconds(seconds)}")

    def finish(self, outcome: str) -> None:
        """The last line: what came out and what it took in all."""
        longest = max(self._times, key=lambda item: item[1], default=("", 0.0))
        tail = f", {longest[0]} the longest" if len(self._times) > 1 else ""
        self.console.print(f"[bold]{escape(outcome)}[/] in {format_seconds(time.monotonic() - self._began)}{tail}")


def format_seconds(seconds: float) -> str:
    """``0.4 s``, ``31.2 s``, ``2 min 05 s``."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    return f"{int(seconds) // 60} min {int(seconds) % 60:02d} s"

"""The bar that ``LLM.generate`` shows while it works."""

import time
from types import TracebackType

from pllm.runtime.request_text import RequestText, TextDelta

__all__ = ["GenerationProgress", "NoProgress"]

_REDRAW_SECONDS = 0.1


class NoProgress:
    """The same, silent."""

    def __enter__(self) -> "NoProgress":
        return self

    def __exit__(self, *_: object) -> None:
        return None

    def advance(self, text: RequestText, change: TextDelta) -> None:
        """Nothing is shown."""


class GenerationProgress:
    """``Processed prompts``: how many are done, and how fast their tokens go in and come out.

    Drawn on standard error by the thread that steps the engine, ten times a second at most: no thread of its own takes
    time from the model.
    """

    def __init__(self, num_prompts: int) -> None:
        from rich.console import Console  # noqa: PLC0415  (20 ms that a silent start saves)
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn  # noqa: PLC0415
        from rich.table import Column  # noqa: PLC0415

        # In a narrow terminal the bar gives way, the figures do not.
        self._progress = Progress(
            TextColumn("Processed prompts:"),
            BarColumn(bar_width=None, table_column=Column(max_width=40)),
            MofNCompleteColumn(table_column=Column(no_wrap=True)),
            TimeElapsedColumn(table_column=Column(no_wrap=True)),
            TextColumn("input {task.fields[input]:.1f} toks/s, output {task.fields[output]:.1f} toks/s"),
            console=Console(stderr=True),
            auto_refresh=False,
        )
        self._task = self._progress.add_task("", total=num_prompts, input=0.0, output=0.0)
        self._input = self._output = 0
        self._started = self._drawn = time.monotonic()

    def __enter__(self) -> "GenerationProgress":
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._draw(time.monotonic())
        self._progress.stop()

    def advance(self, text: RequestText, change: TextDelta) -> None:
        """Count what a step added to a request."""
        self._output += len(change.token_ids)
        if text.finished:
            self._input += len(text.request.prompt_token_ids)
            self._progress.advance(self._task)
        now = time.monotonic()
        if now - self._drawn >= _REDRAW_SECONDS:
            self._draw(now)

    def _draw(self, now: float) -> None:
        seconds = max(now - self._started, 1e-9)
        self._progress.update(self._task, input=self._input / seconds, output=self._output / seconds)
        self._progress.refresh()
        self._drawn = now

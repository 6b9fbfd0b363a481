"""Plots as SVG text, drawn by hand: a report must open anywhere and ask nobody for anything."""

from collections.abc import Sequence
from html import escape
from math import ceil, exp, log

from pllm.runtime.gate.comparison import Comparison

__all__ = ["intervals", "over_time"]

_WIDTH = 760
_LEFT, _RIGHT, _ROW = 190, 20, 30


def intervals(comparisons: Sequence[Comparison]) -> str:
    """A row a quantity: the new side's ratio with its interval, below it that of the base to itself, in grey, and the
    bound. The axis is the change of cost in percent."""
    most = max((abs(log(value)) for each in comparisons for value in _ends(each)), default=0.0)
    reach = max(0.04, 1.1 * most)
    height = _ROW * len(comparisons) + 40

    def x(ratio: float) -> float:
        middle = (_LEFT + _WIDTH - _RIGHT) / 2
        return middle + log(ratio) / reach * (_WIDTH - _LEFT - _RIGHT) / 2

    parts = [_line(x(1), 10, x(1), height - 30, "axis")]
    for percent in _ticks(100 * (exp(reach) - 1)):
        place = x(1 + percent / 100)
        parts.append(_line(place, 10, place, height - 30, "grid"))
        parts.append(_text(place, height - 12, f"{percent:+g}%", "middle"))
    for i, each in enumerate(comparisons):
        top = 20 + _ROW * i
        kind = "slow" if each.is_suspect else "fast" if each.ratio.high < 1 and each.ratio.median < 0.98 else "same"
        parts.append(_text(_LEFT - 10, top + 8, each.quantity.name, "end"))
        parts.append(_line(x(each.noise.low), top + 10, x(each.noise.high), top + 10, "noise"))
        parts.append(_line(x(each.ratio.low), top, x(each.ratio.high), top, kind))
        parts.append(f'<circle class="{kind}" cx="{x(each.ratio.median):.1f}" cy="{top}" r="4"/>')
        bound = x(1 + each.threshold)
        parts.append(_line(bound, top - 8, bound, top + 14, "bound"))
    return _svg(height, parts, "Change of cost by quantity, with intervals of 95%")


def over_time(series: Sequence[Sequence[float]], label: str) -> str:
    """Values in their order, each series with marks of its own: the first new to base, the second base to itself."""
    values = [value for each in series for value in each]
    if not values:
        return ""
    low, high = min(values), max(values)
    room = max(high - low, 1e-9)
    height = 90
    parts = []
    for number, each in enumerate(series):
        step = (_WIDTH - _LEFT - _RIGHT) / max(1, len(each) - 1)
        for i, value in enumerate(each):
            y = height - 15 - (value - low) / room * (height - 30)
            parts.append(
                f'<circle class="{("same", "noise")[number]}" cx="{_LEFT + i * step:.1f}" cy="{y:.1f}" r="3"/>'
            )
    parts.append(_text(_LEFT - 10, 20, f"{high:.4g}", "end"))
    parts.append(_text(_LEFT - 10, height - 12, f"{low:.4g}", "end"))
    parts.append(_text(0, height / 2 + 4, label, "start"))
    return _svg(height, parts, label)


def _ends(each: Comparison) -> tuple[float, ...]:
    return each.ratio.low, each.ratio.high, each.noise.low, each.noise.high, 1 + each.threshold


def _ticks(most: float) -> list[float]:
    """Round percentages on both sides of none."""
    step = next(width for width in (1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0, 1e9) if most / width <= 6)
    count = ceil(most / step) - 1
    return [step * i for i in range(-count, count + 1) if i and step * i > -90]


def _svg(height: float, parts: Sequence[str], title: str) -> str:
    inside = "".join(parts)
    return (
        f'<svg viewBox="0 0 {_WIDTH} {height:.0f}" role="img" aria-label="{escape(title)}">'
        f"<title>{escape(title)}</title>{inside}</svg>"
    )


def _line(x1: float, y1: float, x2: float, y2: float, kind: str) -> str:
    return f'<line class="{kind}" x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}"/>'


def _text(x: float, y: float, text: str, anchor: str) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'

"""The comparison as one SVG file: a panel for each workload and quantity that peers have too, a bar for each side."""

import statistics
from html import escape

from .comparison import Comparison
from .metrics import METRICS, Metric

__all__ = ["plot"]

_WIDTH, _NAMES, _FIGURES = 760, 190, 130
_BAR, _HEAD, _GAP = 18, 24, 14
_OURS, _THEIRS, _RANGE = "#2563eb", "#a3a3a3", "#111827"
_STYLE = "text{font:12px system-ui,sans-serif;fill:#111827}.head{font-weight:600}"


def plot(comparison: Comparison, title: str) -> str:
    """The medians, a line across each from the least to the most of the rounds; bars of a panel begin at nothing."""
    parts: list[str] = []
    top = 40.0
    for workload, kept in comparison.trials.items():
        for metric in METRICS.values():
            if not metric.compared:
                continue
            values = {label: comparison.values(workload, label, metric) for label in kept}
            sides = {label: [value * metric.scale for value in found] for label, found in values.items() if found}
            if sides:
                ours = {side.label for side in comparison.sides if side.is_ours}
                parts += _panel(top, _headline(workload, metric), sides, ours)
                top += _HEAD + _BAR * len(sides) + _GAP
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {top:.0f}" role="img" '
        f'aria-label="{escape(title)}"><title>{escape(title)}</title><style>{_STYLE}</style>'
        f'<rect width="100%" height="100%" fill="#fff"/>{_text(10, 22, title, "head")}{"".join(parts)}</svg>\n'
    )


def _headline(workload: str, metric: Metric) -> str:
    return f"{workload}: {metric.label}, {metric.unit} ({'more' if metric.higher_is_better else 'less'} is better)"


def _panel(top: float, headline: str, sides: dict[str, list[float]], ours: set[str]) -> list[str]:
    longest = max(max(values) for values in sides.values())
    scale = (_WIDTH - _NAMES - _FIGURES) / longest if longest else 0.0
    parts = [_text(10, top + 14, headline, "head")]
    for i, (label, values) in enumerate(sides.items()):
        y = top + _HEAD + i * _BAR
        median, middle = statistics.median(values), y + _BAR / 2
        colour = _OURS if label in ours else _THEIRS
        parts.append(_text(_NAMES - 8, middle + 4, label, anchor="end"))
        parts.append(
            f'<rect x="{_NAMES}" y="{y + 2:.1f}" width="{median * scale:.1f}" height="{_BAR - 4}" fill="{colour}"/>'
        )
        first, last = _NAMES + min(values) * scale, _NAMES + max(values) * scale
        parts.append(
            f'<line x1="{first:.1f}" x2="{last:.1f}" y1="{middle:.1f}" y2="{middle:.1f}" stroke="{_RANGE}" '
            'stroke-width="2"/>'
        )
        parts.append(_text(last + 8, middle + 4, f"{median:,.0f}" if median >= 100 else f"{median:.3g}"))
    return parts


def _text(x: float, y: float, text: str, kind: str = "", *, anchor: str = "start") -> str:
    return f'<text class="{kind}" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'

"""What pytest-benchmark wrote (``--benchmark-json``), of a base and of a new side, as checks.

Two files are two runs, and runs apart are not alike: so this asks more than the gate's own timings do. The suite times
the calibration kernel beside its subjects; where that moved by more than 5%, nothing can be said. Else a benchmark is
slower when its median rose by more than max(2%, 3 x the half-width of either median, by the quartiles and the number of
rounds: McGill, Tukey and Larsen, Variations of Box Plots, 1978).
"""

from dataclasses import dataclass
from math import log, sqrt
from pathlib import Path

import msgspec

from pllm.runtime.errors import UserInputError
from pllm.runtime.gate.check import Check, Verdict

__all__ = ["CALIBRATION", "Benchmark", "check_benchmarks", "read_benchmarks"]

CALIBRATION = "test_calibration"
_MOST_DRIFT = 0.05
_LEAST = 0.02
_NOTCH = 1.57
_TIMES_NOISE = 3


class _Stats(msgspec.Struct, frozen=True):
    median: float
    iqr: float
    rounds: int


class _Entry(msgspec.Struct, frozen=True):
    name: str
    stats: _Stats


class _Document(msgspec.Struct, frozen=True):
    benchmarks: list[_Entry]


@dataclass(frozen=True, slots=True)
class Benchmark:
    """Seconds: the median of its rounds, and how far off the median may be, as a share of it."""

    median: float
    half_width: float


def read_benchmarks(path: Path) -> dict[str, Benchmark]:
    """By name. Raises UserInputError for a file that pytest-benchmark did not write."""
    try:
        document = msgspec.json.decode(path.read_bytes(), type=_Document)
    except (OSError, msgspec.DecodeError) as error:
        raise UserInputError(f"{path} is no JSON of pytest-benchmark (--benchmark-json FILE): {error}") from None
    found = {}
    for entry in document.benchmarks:
        stats = entry.stats
        found[entry.name] = Benchmark(stats.median, _NOTCH * stats.iqr / sqrt(stats.rounds) / stats.median)
    return found


def check_benchmarks(base: dict[str, Benchmark], new: dict[str, Benchmark]) -> list[Check]:
    """A check for each benchmark of either side, in milliseconds. What only one side has is void."""
    reason = _unlike(base, new)
    return [_check(name, base.get(name), new.get(name), reason) for name in dict.fromkeys([*base, *new])]


def _unlike(base: dict[str, Benchmark], new: dict[str, Benchmark]) -> str:
    """Why the two runs cannot be compared; empty where they can."""
    if CALIBRATION not in base or CALIBRATION not in new:
        return f"{CALIBRATION} was not run beside it"
    moved = abs(log(new[CALIBRATION].median / base[CALIBRATION].median))
    return f"the machine's own speed moved by {moved:.0%}" if moved > _MOST_DRIFT else ""


def _check(name: str, base: Benchmark | None, new: Benchmark | None, unlike: str) -> Check:
    before, after = (None if side is None else 1e3 * side.median for side in (base, new))
    if base is None or new is None:
        return Check(name, before, after, Verdict.VOID, "only one side has it", "ms")
    if unlike:
        return Check(name, before, after, Verdict.VOID, unlike, "ms")
    change = new.median / base.median - 1
    bound = max(_LEAST, _TIMES_NOISE * max(base.half_width, new.half_width))
    verdict = Verdict.REGRESSION if change > bound else Verdict.PASS
    return Check(name, before, after, verdict, f"{change:+.1%}; bound {bound:+.1%}", "ms")

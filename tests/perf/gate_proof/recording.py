"""Trios as they were measured, kept in a file: first what the base said of itself, then a trio a line, all JSON.

Starts take most trios to settle. So after each trio with all tasks come some without any: births alone, as the gate has
them when nothing else is open.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import msgspec

from pllm.runtime.gate.calibration import Calibration
from pllm.runtime.gate.facts import Facts
from pllm.runtime.gate.trio import Trio, TrioSpec, measure_trio

__all__ = ["Recording", "read", "record"]

_BIRTHS = 4


@dataclass(frozen=True, slots=True)
class Recording:
    """``trios`` with all tasks, and ``births``: trios without any."""

    facts: Facts
    trios: tuple[Trio, ...]
    births: tuple[Trio, ...]


def record(spec: TrioSpec, facts: Facts, seconds: float, target: Path) -> Iterator[Trio]:
    """Measure trios for so long, and append each to the file as soon as it is there."""
    calibration = Calibration()
    number, total = 0, 0.0
    with target.open("ab") as file:
        if not file.tell():
            file.write(msgspec.json.encode(facts) + b"\n")
        while total < seconds:
            tasks = () if number % (1 + _BIRTHS) else spec.tasks
            trio = measure_trio(replace(spec, tasks=tasks), number, calibration.seconds)
            number, total = number + 1, total + trio.seconds
            file.write(msgspec.json.encode(trio) + b"\n")
            file.flush()
            yield trio


def read(*sources: Path) -> Recording:
    """The facts of the first, and the trios of all, in order."""
    files = [source.read_bytes().splitlines() for source in sources]
    taken = [msgspec.json.decode(line, type=Trio) for lines in files for line in lines[1:]]
    most = max(len(trio.costs) for trio in taken)
    trios = tuple(trio for trio in taken if len(trio.costs) == most)
    births = tuple(trio for trio in taken if len(trio.costs) < most)
    return Recording(msgspec.json.decode(files[0][0], type=Facts), trios, births)

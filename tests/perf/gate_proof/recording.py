"""Trios as they were measured, kept in a file: first what the base said of itself, then a trio a line, all JSON."""

from collections.abc import Iterator
from pathlib import Path

import msgspec

from pllm.runtime.gate.calibration import Calibration
from pllm.runtime.gate.facts import Facts
from pllm.runtime.gate.trio import Trio, TrioSpec, measure_trio

__all__ = ["read", "record"]


def record(spec: TrioSpec, facts: Facts, seconds: float, target: Path) -> Iterator[Trio]:
    """Measure trios for so long, and append each to the file as soon as it is there."""
    calibration = Calibration()
    number, total = 0, 0.0
    with target.open("ab") as file:
        if not file.tell():
            file.write(msgspec.json.encode(facts) + b"\n")
        while total < seconds:
            trio = measure_trio(spec, number, calibration.seconds)
            number, total = number + 1, total + trio.seconds
            file.write(msgspec.json.encode(trio) + b"\n")
            file.flush()
            yield trio


def read(*sources: Path) -> tuple[Facts, list[Trio]]:
    """The facts of the first, and the trios of all, in order."""
    files = [source.read_bytes().splitlines() for source in sources]
    trios = [msgspec.json.decode(line, type=Trio) for lines in files for line in lines[1:]]
    return msgspec.json.decode(files[0][0], type=Facts), trios

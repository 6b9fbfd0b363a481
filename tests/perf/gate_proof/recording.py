"""Trios as they were measured, kept in a file: one JSON object a line."""

from collections.abc import Iterator
from pathlib import Path

import msgspec

from pllm.runtime.gate.calibration import Calibration
from pllm.runtime.gate.trio import Trio, TrioSpec, measure_trio

__all__ = ["read", "record"]


def record(spec: TrioSpec, seconds: float, target: Path) -> Iterator[Trio]:
    """Measure trios for so long, and append each to the file as soon as it is there."""
    calibration = Calibration()
    total, number = 0.0, 0
    while total < seconds:
        trio = measure_trio(spec, number, calibration.seconds)
        number, total = number + 1, total + trio.seconds
        with target.open("ab") as file:
            file.write(msgspec.json.encode(trio) + b"\n")
        yield trio


def read(*sources: Path) -> list[Trio]:
    """All of them, in order."""
    return [
        msgspec.json.decode(line, type=Trio) for source in sources for line in source.read_bytes().splitlines() if line
    ]

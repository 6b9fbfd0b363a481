"""A trio: three fresh processes, the base's, its double and the new one's, that take turns.

The double is the base once more. What separates it from the base is noise, and the gate believes no difference of the
new side that noise could make. Turns are short and lie close together, so a machine that drifts from minute to minute
drifts alike for all three; and every trio's processes are fresh, since where a process's memory happens to lie can make
it a percent or two slower for as long as it lives.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from statistics import fmean
from typing import Protocol

from pllm.runtime.gate.quantity import FIRST_TOKEN, PEAK_MEMORY, READY, Quantity
from pllm.runtime.gate.quiet import wait_share
from pllm.runtime.gate.side import Side, Worker
from pllm.runtime.gate.turns import Took, Turn

__all__ = ["BASE", "DOUBLE", "NEW", "ORDERS", "Costs", "Task", "Trio", "TrioSpec", "measure_trio"]

BASE, DOUBLE, NEW = range(3)

ORDERS = ((0, 1, 2), (2, 1, 0), (1, 2, 0), (0, 2, 1), (2, 0, 1), (1, 0, 2))
"""All orders of three, each with its mirror after it: A B B A, for three. Nobody always goes first, or after whom."""

Costs = tuple[float, float, float]
"""Of the base, its double and the new side."""


class Task(Protocol):
    """A turn, taken in ``every`` so many rounds, and the quantities that one side's answers to it tell of."""

    @property
    def every(self) -> int: ...
    @property
    def turn(self) -> Turn: ...
    @property
    def quantities(self) -> tuple[Quantity, ...]: ...
    def costs(self, answers: Sequence[Took]) -> dict[Quantity, float]: ...


@dataclass(frozen=True, slots=True)
class Trio:
    """What one trio came to: each quantity's costs, by its name; the calibration kernel's seconds, between the rounds;
    of each side the share of its steps' time that went in waiting for a core; and how long it all took, in seconds."""

    costs: Mapping[str, Costs]
    calibrations: tuple[float, ...]
    waits: Costs
    seconds: float


@dataclass(frozen=True, slots=True)
class TrioSpec:
    """What is measured: ``num_blocks`` KV blocks for each side, ``rounds`` rounds of ``tasks``."""

    base: Side
    double: Side
    new: Side
    tasks: tuple[Task, ...]
    rounds: int
    num_blocks: int
    threads: int = 1


def measure_trio(spec: TrioSpec, number: int, calibrate: Callable[[], float]) -> Trio:
    """Start three, let them take turns, end them. ``number`` shifts the order in which they are started.

    Raises what a side ended with.
    """
    began = time.monotonic()
    sides = (spec.base, spec.double, spec.new)
    with ExitStack() as running:
        workers: dict[int, Worker] = {}
        for place in ORDERS[number % len(ORDERS)]:
            workers[place] = Worker.start(sides[place], num_blocks=spec.num_blocks, threads=spec.threads)
            running.callback(workers[place].kill)
        answers: dict[tuple[int, Task], list[Took]] = {}
        calibrations = [calibrate()]
        for round_number in range(spec.rounds):
            order = ORDERS[(number + round_number) % len(ORDERS)]
            for task in spec.tasks:
                for place in order if round_number % task.every == 0 else ():
                    answers.setdefault((place, task), []).append(workers[place].take(task.turn))
            calibrations.append(calibrate())
        costs, waits = [], []
        for place in range(3):
            mine = {task: answers[place, task] for task in spec.tasks}
            costs.append(_costs(mine, workers[place]))
            waits.append(_waits(mine))
    rows = {name: _three([each[name] for each in costs]) for name in costs[0]}
    return Trio(rows, tuple(calibrations), _three(waits), time.monotonic() - began)


def _costs(answers: Mapping[Task, Sequence[Took]], worker: Worker) -> dict[str, float]:
    """One side's, by the quantities' names. Ends the worker."""
    found = {quantity: cost for task, each in answers.items() for quantity, cost in task.costs(each).items()}
    opened = worker.opened
    found[READY] = opened.ready - worker.started - opened.ready_wait
    found[FIRST_TOKEN] = opened.first_token - worker.started - opened.first_token_wait
    found[PEAK_MEMORY] = float(worker.close().peak_rss)
    return {quantity.name: cost for quantity, cost in found.items()}


def _waits(answers: Mapping[Task, Sequence[Took]]) -> float:
    """The share of time in waiting, each task counting alike; 0 where there was none to do."""
    shares = [fmean(wait_share(took.seconds, took.waits) for took in each) for each in answers.values()]
    return fmean(shares) if shares else 0.0


def _three(values: Sequence[float]) -> Costs:
    base, double, new = values
    return base, double, new

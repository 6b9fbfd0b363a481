"""What the build tunes for a CPU: found where it is faster, and left alone where it is not, or where noise says so."""

import itertools
import random
from collections.abc import Sequence

from pllm.build.cpu_tuning import tune
from pllm.runtime.manifest import CpuTuning

START = CpuTuning(cores=4, threads=4)


class Machine:
    """Steps that take as long as their tuning says, give or take the noise."""

    def __init__(self, seed: int, noise: float) -> None:
        self.random, self.noise, self.calls = random.Random(seed), noise, 0

    def cost(self, tuning: CpuTuning) -> float:
        """Best with two threads, halved pieces where rows are many, and the default else."""
        return (
            1.0
            + 0.1 * abs(tuning.threads - 2)
            + 0.08 * abs(tuning.blocked + 2)
            + 0.08 * abs(tuning.streamed)
            + 0.08 * abs(tuning.rows)
        )

    def times(self, tuning: CpuTuning) -> Sequence[float]:
        self.calls += 1
        return [scale * self.cost(tuning) * self.random.lognormvariate(0, self.noise) for scale in (0.01, 0.02, 1.0)]


def test_it_finds_what_is_faster() -> None:
    for seed in range(20):
        best = tune(START, (4, 2), Machine(seed, 0.002).times)
        assert (best.threads, best.streamed, best.rows) == (2, 0, 0)
        assert best.blocked == -1  # one step of two: further ones are for a better default


def test_the_fewest_threads_are_tried_even_where_fewer_are_faster_already() -> None:
    start = CpuTuning(cores=8, threads=8)
    assert tune(start, (8, 6, 2), Machine(0, 0.002).times).threads == 2


def test_what_makes_no_difference_stays_as_it_is() -> None:
    """On a restless machine too."""
    drawn = random.Random(0)
    for noise in 100 * [0.02] + 100 * [0.1]:
        best = tune(START, (4, 2), lambda _, noise=noise: [drawn.lognormvariate(0, noise) for _ in range(3)])
        assert best == START


def test_it_ends_when_the_time_is_up() -> None:
    machine = Machine(0, 0.0)
    ticks = itertools.count(step=10)
    best = tune(START, (4, 2), machine.times, seconds=20, clock=lambda: next(ticks))
    assert best == START
    assert machine.calls <= 3
    ticks = itertools.count(step=1)
    assert tune(START, (4, 2), machine.times, seconds=25, clock=lambda: next(ticks)).threads == 2


def test_threads_are_for_as_many_cores() -> None:
    tuned = CpuTuning(cores=4, threads=2)
    assert [tuned.threads_on(cores) for cores in (2, 4, 8)] == [2, 2, 8]

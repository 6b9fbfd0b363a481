"""The ratio of served decoding steps to the build's latency table."""

import math

import pytest

from pllm.runtime.latencies import Latency
from pllm.runtime.step import ScheduledRow
from pllm.runtime.step_times import StepTimes

from .fake_model import Run

TABLE = (Latency(1, 1, 128, 2.0), Latency(4, 4, 128, 5.0), Latency(1, 128, 128, 60.0))


def rows(count: int, tokens: int = 1) -> list[ScheduledRow]:
    return [ScheduledRow(i, 0, [0] * tokens, [0], ()) for i in range(count)]


@pytest.mark.parametrize(("count", "ms"), [(1, 2.0), (2, 3.0), (3, 4.0), (4, 5.0)])
def test_a_step_is_compared_on_the_line_between_buckets(count: int, ms: float) -> None:
    times = StepTimes(TABLE)
    times.note(rows(count), 1.5 * ms / 1e3)
    assert times.ratio == pytest.approx(1.5)


def test_what_was_not_measured_is_left_out() -> None:
    times = StepTimes(TABLE)
    times.note(rows(5), 1.0)
    times.note(rows(1, tokens=128), 1.0)
    times.note([*rows(1), *rows(1, tokens=2)], 1.0)
    assert math.isnan(times.ratio)
    StepTimes(()).note(rows(1), 1.0)
    later = StepTimes((Latency(2, 2, 128, 1.0),))
    later.note(rows(1), 1.0)
    assert math.isnan(later.ratio)


def test_older_steps_count_less() -> None:
    times = StepTimes(TABLE)
    for _ in range(1000):
        times.note(rows(1), 0.002)
    assert times.ratio == pytest.approx(1)
    for _ in range(100):
        times.note(rows(1), 0.004)
    assert 1.6 < times.ratio < 1.7, "the last hundred are five in eight of it"
    for _ in range(1000):
        times.note(rows(1), 0.004)
    assert times.ratio == pytest.approx(2, abs=1e-3)


def test_the_engine_notes_its_decoding_steps() -> None:
    run = Run()
    assert math.isnan(run.engine.perf_ratio)
    run.engine.compare_with((Latency(1, 1, 128, 1e6),))
    run.add("a", [1, 2, 3])
    run.step()
    assert math.isnan(run.engine.perf_ratio), "the prompt was read"
    run.step()
    assert 0 < run.engine.perf_ratio < 1

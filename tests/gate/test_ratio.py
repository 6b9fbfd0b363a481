"""The median of paired log-ratios, its interval, and what is concluded of one quantity."""

from math import exp, log

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pllm.runtime.gate.comparison import Comparison
from pllm.runtime.gate.quantity import LEAST_BOUND
from pllm.runtime.gate.ratio import Ratio, log_ratios

from .trios import DECODE

LOGS = st.lists(st.floats(-1, 1), min_size=1, max_size=40)
COST = st.floats(1e-6, 1e3)
COSTS = st.lists(st.tuples(COST, COST, COST), min_size=1, max_size=20)


@given(LOGS)
def test_the_interval_holds_the_median_and_lies_among_the_ratios(logs: list[float]) -> None:
    ratio = Ratio.of(logs)
    assert exp(min(logs)) <= ratio.low * (1 + 1e-12)
    assert ratio.low <= ratio.median * (1 + 1e-12)
    assert ratio.median <= ratio.high * (1 + 1e-12)
    assert ratio.high <= exp(max(logs)) * (1 + 1e-12)


@given(LOGS, st.floats(-0.5, 0.5))
def test_a_factor_on_all_is_the_same_factor_on_the_ratio(logs: list[float], shift: float) -> None:
    plain, shifted = Ratio.of(logs), Ratio.of([each + shift for each in logs])
    for name in ("low", "median", "high"):
        assert getattr(shifted, name) == pytest.approx(getattr(plain, name) * exp(shift), rel=1e-9)


@given(LOGS)
def test_who_is_called_base_only_turns_the_ratio_round(logs: list[float]) -> None:
    plain, turned = Ratio.of(logs), Ratio.of([-each for each in logs])
    assert turned.median == pytest.approx(1 / plain.median)


@given(LOGS)
def test_the_same_ratios_have_the_same_interval(logs: list[float]) -> None:
    assert Ratio.of(logs) == Ratio.of(list(logs))


def test_the_interval_covers_the_truth_as_often_as_it_says() -> None:
    """Twenty trios, heavy tails (Student's t, 3): 500 runs."""
    rng = np.random.default_rng(0)
    found = [Ratio.of((0.02 * rng.standard_t(3, 20)).tolist()) for _ in range(500)]
    covered = np.mean([ratio.low <= 1 <= ratio.high for ratio in found])
    assert 0.91 <= covered <= 0.98


@given(COSTS, st.floats(0.5, 2))
def test_a_slower_new_side_is_slower_by_as_much(costs: list[tuple[float, float, float]], factor: float) -> None:
    of_new, of_double = log_ratios(costs)
    of_slower, still = log_ratios([(base, double, new * factor) for base, double, new in costs])
    assert of_slower == pytest.approx([each + log(factor) for each in of_new])
    assert still == of_double


@given(COSTS, st.floats(0.1, 10))
def test_a_machine_that_slows_down_between_trios_changes_nothing(
    costs: list[tuple[float, float, float]], factor: float
) -> None:
    slowed = [tuple(cost * factor**i for cost in trio) for i, trio in enumerate(costs)]
    before, after = Comparison.of(DECODE, costs), Comparison.of(DECODE, slowed)  # type: ignore[arg-type]
    assert after.ratio.median == pytest.approx(before.ratio.median, rel=1e-6)
    assert after.threshold == pytest.approx(before.threshold, rel=1e-6)


def test_the_bound_is_three_times_what_the_base_differs_from_itself() -> None:
    quiet = Comparison.of(DECODE, [(1.0, 1.0, 1.01)] * 8)
    assert quiet.threshold == LEAST_BOUND
    assert quiet.is_settled
    assert not quiet.is_suspect
    # The base's double is now 4% slower, now 4% faster: whatever made that difference may make others as large.
    uneven = Comparison.of(DECODE, [(1.0, 1.04, 1.05), (1.04, 1.0, 1.05)] * 4)
    assert uneven.threshold == pytest.approx(3 * uneven.noise.half_width)
    assert uneven.noise.half_width == pytest.approx(0.04, rel=0.01)
    assert not uneven.is_suspect
    assert not uneven.is_settled
    slower = Comparison.of(DECODE, [(1.0, 1.0, 1.05)] * 8)
    assert slower.is_suspect


def test_text_of_a_ratio() -> None:
    assert str(Ratio(1.051, 1.042, 1.06)) == "+5.1% [+4.2, +6.0]"
    assert str(Ratio(0.99, 0.98, 1.0)) == "-1.0% [-2.0, +0.0]"

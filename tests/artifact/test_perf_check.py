"""``pllm verify --perf``: arithmetic and refusals; that it measures is seen on the quickstart artifact (tests/e2e)."""

import pytest

from pllm.runtime.errors import MeasurementError
from pllm.runtime.latencies import Latency
from pllm.runtime.perf_check import PerfCheck, StepPair, _refuse_drift


def test_ratios_are_medians_and_calibrated_by_the_cores() -> None:
    pairs = tuple(StepPair(Latency(n, n, 128, 2.0), ms) for n, ms in ((1, 3.0), (2, 4.0), (4, 9.0)))
    assert PerfCheck(pairs, 1.6, "a", "a").ratio == 2.0
    assert PerfCheck(pairs, 1.6, "a", "a").calibrated_ratio == 1.25
    assert PerfCheck(pairs, None, "a", "").calibrated_ratio is None


def test_a_machine_that_changes_its_speed_is_void() -> None:
    _refuse_drift([1.0, 1.02, 1.01, 1.03])
    with pytest.raises(MeasurementError, match="void"):
        _refuse_drift([1.0, 1.0, 1.1, 1.2])

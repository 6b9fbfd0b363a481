import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pllm.runtime.bench.distribution import Distribution

numbers = st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=50)


@given(numbers, st.floats(0, 1))
def test_quantiles_are_numpys(samples: list[float], share: float) -> None:
    ours = Distribution(tuple(samples))
    assert ours.quantile(share) == pytest.approx(float(np.quantile(samples, share)), rel=1e-9, abs=1e-6)
    assert ours.mean == pytest.approx(float(np.mean(samples)), rel=1e-9, abs=1e-6)
    assert min(samples) <= ours.quantile(share) <= max(samples)


def test_order_does_not_matter_and_samples_keep_theirs() -> None:
    found = Distribution.of([3.0, 1.0, 2.0, 4.0])
    assert found is not None
    assert found.samples == (3.0, 1.0, 2.0, 4.0)
    assert (found.median, found.quantile(0), found.quantile(1), found.quantile(0.25)) == (2.5, 1.0, 4.0, 1.75)
    summary = found.summary()
    assert (summary["count"], summary["mean"], summary["p50"], summary["p99"]) == (4, 2.5, 2.5, 3.97)


def test_no_samples_are_no_distribution() -> None:
    assert Distribution.of([]) is None
    with pytest.raises(ValueError, match="at least one"):
        Distribution(())
    with pytest.raises(ValueError, match="from 0 to 1"):
        Distribution((1.0,)).quantile(1.1)

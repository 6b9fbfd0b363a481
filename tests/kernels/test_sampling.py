"""argmax, log-sum-exp and the draw without a sort, on every instruction set, against the specification."""

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from pllm.kernels import reference
from pllm.kernels.cpu.library import CpuLibrary, OperatorError


def rows(seed: int, count: int, vocab: int, spread: float = 3.0, coarse: bool = False) -> NDArray[np.float32]:
    """Logits; coarse ones are full of ties."""
    logits = np.random.default_rng(seed).normal(0, spread, (count, vocab)).astype(np.float32)
    return np.round(logits).astype(np.float32) if coarse else logits


def sample(
    library: CpuLibrary, logits: NDArray[np.float32], uniform: NDArray[np.float64], t: float, k: int, p: float, m: float
) -> NDArray[np.int64]:
    n = len(logits)
    ids, usable = library.sample_rows(
        logits,
        np.full(n, t, np.float32),
        np.full(n, k, np.int32),
        np.full(n, p, np.float32),
        np.full(n, m, np.float32),
        uniform,
    )
    assert usable.all()
    return ids


@pytest.mark.parametrize("vocab", [1, 2, 63, 64, 65, 1000, 151936])
@pytest.mark.parametrize("coarse", [False, True])
def test_argmax_is_the_first_maximum(library: CpuLibrary, vocab: int, coarse: bool) -> None:
    logits = rows(vocab, 5, vocab + 3, coarse=coarse)[:, :vocab]
    ids, maxima, usable = library.argmax(logits)
    assert np.array_equal(ids, logits.argmax(1))
    assert np.array_equal(maxima, logits.max(1))
    assert usable.all()


def test_rows_that_are_not_finite_are_told_apart(library: CpuLibrary) -> None:
    logits = rows(1, 6, 1000)
    logits[0, 999] = np.nan
    logits[1, 0] = -np.nan
    logits[2] = -np.inf
    logits[3, 5] = np.inf
    logits[4, :990] = -np.inf
    usable = [False, False, False, False, True, True]
    ids, _, argmax_usable = library.argmax(logits)
    assert argmax_usable.tolist() == usable
    assert np.array_equal(ids[4:], logits[4:].argmax(1))
    n = len(logits)
    for t in (0.0, 1.0):
        for k, p in ((0, 1.0), (5, 1.0), (0, 0.5), (5, 0.5)):
            _, sample_usable = library.sample_rows(
                logits, np.full(n, t, np.float32), np.full(n, k, np.int32), np.full(n, p, np.float32),
                np.zeros(n, np.float32), np.full(n, 0.5),
            )  # fmt: skip
            assert sample_usable.tolist() == usable
    sums = library.logsumexp(logits)
    assert np.isnan(sums[:2]).all()
    assert sums[2] == -np.inf
    assert sums[3] == np.inf


@pytest.mark.parametrize("vocab", [1, 7, 1024, 1025, 151936])
def test_logsumexp(library: CpuLibrary, vocab: int) -> None:
    logits = rows(vocab, 3, vocab)
    logits[0] += 1000
    logits[1, : vocab // 2] = -np.inf
    expected = torch.logsumexp(torch.from_numpy(logits).double(), 1).numpy()
    np.testing.assert_allclose(library.logsumexp(logits), expected, rtol=2e-7, atol=2e-7)


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    seed=st.integers(0, 1 << 30),
    vocab=st.one_of(st.integers(1, 200), st.integers(1, 5000)),
    coarse=st.booleans(),
    spread=st.sampled_from([0.0, 0.5, 3.0, 20.0]),
    t=st.sampled_from([0.0, 0.3, 0.7, 1.0, 1.7]),
    k=st.one_of(st.sampled_from([-1, 0, 1, 2, 50]), st.integers(1, 6000)),
    p=st.sampled_from([1e-6, 0.1, 0.5, 0.9, 0.999, 1.0]),
    m=st.sampled_from([0.0, 0.0, 0.01, 0.3, 1.0]),
)
def test_a_draw_is_the_specification(
    library: CpuLibrary, seed: int, vocab: int, coarse: bool, spread: float, t: float, k: int, p: float, m: float
) -> None:
    logits = rows(seed, 1, vocab, spread, coarse).repeat(8, 0)
    uniform = np.random.default_rng(seed).random(8)
    uniform[0] = 0.0
    uniform[1] = np.nextafter(1.0, 0.0)
    got = sample(library, logits, uniform, t, k, p, m)
    row = torch.from_numpy(logits[0])
    expected = np.array([reference.sample(row, t, k, p, m, u) for u in uniform])
    if t == 0.0:
        assert np.array_equal(got, expected)
        return
    # Float32 weights move the ends of the cumulative steps by a rounding: a draw that lands on one may go either way.
    probabilities = reference.filtered_probabilities(row, t, k, p, m).numpy()
    cumulative = np.cumsum(probabilities)
    for u, mine, theirs in zip(uniform, got, expected, strict=True):
        if mine != theirs:
            low, high = sorted((mine, theirs))
            assert (
                probabilities[low : high + 1].sum() < 1e-5
                or abs(cumulative[low] - u) < 2e-6
                or _on_an_edge(row, t, k, p, m)
            )


def _on_an_edge(row: torch.Tensor, t: float, k: int, p: float, m: float) -> bool:
    """Whether a rounding of p or m changes which tokens are kept."""
    kept = [
        (reference.filtered_probabilities(row, t, k, p * (1 + e), m * (1 + e)) > 0).tolist() for e in (-3e-6, 3e-6)
    ]  # fmt: skip
    return kept[0] != kept[1]


@pytest.mark.parametrize(
    ("t", "k", "p", "m"),
    [(1.0, 0, 1.0, 0.0), (0.8, 20, 1.0, 0.0), (1.0, 0, 0.9, 0.0), (0.6, 20, 0.95, 0.05), (1.5, 0, 1.0, 0.1)],
)
def test_draws_follow_the_distribution(library: CpuLibrary, t: float, k: int, p: float, m: float) -> None:
    logits = rows(5, 1, 3000, 2.0)
    n = 40_000
    expected = reference.filtered_probabilities(torch.from_numpy(logits[0]), t, k, p, m).numpy()
    uniform = (np.arange(n) + 0.5) / n  # stratified: counts are within one of n times the probability, per run of ids
    got = np.concatenate([sample(library, logits.repeat(500, 0), u, t, k, p, m) for u in uniform.reshape(-1, 500)])
    counts = np.bincount(got, minlength=3000)
    assert (counts[expected == 0] == 0).all()
    assert np.abs(counts - n * expected).max() <= 2.0


def test_a_row_does_not_depend_on_its_neighbours(library: CpuLibrary) -> None:
    logits = rows(6, 12, 151936)
    g = np.random.default_rng(1)
    t, k = g.uniform(0, 2, 12).astype(np.float32), g.integers(0, 200, 12).astype(np.int32)
    p, m, u = g.uniform(0.3, 1.2, 12).astype(np.float32), g.uniform(0, 0.1, 12).astype(np.float32), g.random(12)
    together, _ = library.sample_rows(logits, t, k, p, m, u)
    for i in range(12):
        one = slice(i, i + 1)
        assert library.sample_rows(logits[one], t[one], k[one], p[one], m[one], u[one])[0] == together[i]


def test_parameters_of_another_length_are_refused(library: CpuLibrary) -> None:
    f, i, d = np.ones(2, np.float32), np.ones(2, np.int32), np.zeros(2)
    with pytest.raises(OperatorError, match="3 rows"):
        library.sample_rows(rows(0, 3, 10), f, i, f, f, d)

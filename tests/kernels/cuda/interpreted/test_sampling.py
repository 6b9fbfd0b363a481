"""The sampler and the penalties against the specification, token by token."""

from collections.abc import Callable

import pytest
import torch

from pllm.kernels import reference
from pllm.kernels.cuda import sampling
from pllm.kernels.cuda.penalties import penalize, record
from pllm.kernels.cuda.sampling import sample

from .cases import generators


def draw(logits: torch.Tensor, filters: list[tuple[float, int, float, float]], seed: int = 0) -> torch.Tensor:
    """filters: temperature, top_k, top_p, min_p of each row."""
    g = torch.Generator().manual_seed(seed)
    t, k, p, m = (torch.tensor(column) for column in zip(*filters, strict=True))
    seeds = torch.randint(-(2**63), 2**63 - 1, (len(filters),), generator=g)
    positions = torch.randint(0, 1000, (len(filters),), generator=g)
    inputs = (logits, t.float(), k.int(), p.float(), m.float(), seeds, positions)
    tokens = sample(*inputs)
    assert torch.equal(tokens[t >= 0], reference.sample_tokens(*inputs)[t >= 0])
    return tokens


FILTERS = [
    (1.0, 0, 1.0, 0.0),
    (0.0, 5, 0.5, 0.2),
    (0.7, 20, 1.0, 0.0),
    (0.6, 20, 0.95, 0.0),
    (1.3, 0, 0.9, 0.0),
    (1.0, 0, 1.0, 0.1),
    (2.0, 3, 0.8, 0.05),
    (0.6, 1, 1.0, 0.0),
    (1.0, -1, 1e-6, 0.0),
    (1.0, 0, 0.7, 0.02),
    (1.0, 300, 0.9, 0.0),
    (1.5, 700, 1.0, 0.01),
    (1.0, 10**6, 0.5, 0.0),
]


@pytest.mark.parametrize(("size", "spread"), [(5003, 3.0), (1024, 1.0), (37, 2.0)])
def test_every_filter(size: int, spread: float) -> None:
    for g in generators(1, size):
        logits = spread * torch.randn((len(FILTERS), size + 5), generator=g)[:, :size]
        draw(logits, FILTERS, seed=size)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_narrow_logits_have_ties(dtype: torch.dtype) -> None:
    for g in generators(1, 1):
        draw(torch.randn((len(FILTERS), 2500), generator=g).to(dtype), FILTERS)


@pytest.mark.nightly
@pytest.mark.parametrize("seed", range(20))
def test_random_filters(seed: int) -> None:
    g = torch.Generator().manual_seed(seed)
    size, rows = int(torch.randint(1, 9000, (), generator=g)), 12
    logits = float(torch.rand((), generator=g) * 6) * torch.randn((rows, size), generator=g)
    t, k = 0.2 + 1.8 * torch.rand(rows, generator=g), torch.randint(-1, 400, (rows,), generator=g)
    p, m = (torch.rand(rows, generator=g).clamp(min=1e-3) for _ in range(2))
    p[torch.rand(rows, generator=g) < 0.3], m[torch.rand(rows, generator=g) < 0.6] = 1.0, 0.0
    draw(logits, list(zip(*(x.tolist() for x in (t, k, p, 0.2 * m)), strict=True)), seed)


def test_a_flat_row_takes_the_long_way() -> None:
    """Hundreds of equal logits: more candidates than fit, for every filter."""
    logits = torch.zeros((len(FILTERS), 3000))
    logits[:, 1500:] = -1.0
    draw(logits, FILTERS)


def test_masked_tokens_are_never_drawn() -> None:
    for allowed in ([7], [3, 2050], [0, 1, 2, 1024, 2099]):
        logits = torch.full((len(FILTERS), 2100), -torch.inf)
        logits[:, allowed] = torch.randn(len(allowed))
        assert set(draw(logits, FILTERS).tolist()) <= set(allowed)


def test_a_row_that_cannot_be_drawn_from_says_so() -> None:
    logits = torch.randn((4, 1500))
    logits[0, 1200] = torch.nan
    logits[1, 3] = torch.inf
    logits[2] = -torch.inf
    for filters in FILTERS:
        tokens = draw(logits, [filters] * 4)
        assert tokens[:3].tolist() == [-1, -1, -1]
        assert tokens[3] >= 0


def test_rows_of_no_sequence_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    poison = -12345
    empty: Callable[..., torch.Tensor] = torch.empty
    monkeypatch.setattr(torch, "empty", lambda *args, **kwargs: empty(*args, **kwargs).fill_(poison))
    logits = torch.full((2, 40), torch.nan)
    logits[0] = 0.5
    tokens = draw(logits, [(1.0, 0, 1.0, 0.0), (-1.0, 0, 1.0, 0.0)])
    assert tokens[1] == poison
    assert 0 <= tokens[0] < 40


def test_a_row_does_not_depend_on_its_neighbours() -> None:
    g = next(generators(1, 3))
    logits = 2 * torch.randn((len(FILTERS), 2000), generator=g)
    t, k, p, m = (torch.tensor(column) for column in zip(*FILTERS, strict=True))
    seeds, positions = torch.arange(len(FILTERS)), torch.arange(len(FILTERS))
    inputs = (logits, t.float(), k.int(), p.float(), m.float(), seeds, positions)
    together = sample(*inputs)
    for i in range(len(FILTERS)):
        assert sample(*(x[i : i + 1] for x in inputs)).item() == together[i]


def test_the_draws_follow_the_distribution() -> None:
    """By the specification's noise, which the kernel's equals: 5,000 positions of one seed."""
    logits = torch.tensor([2.0, 1.0, 0.0, -1.0, -3.0])
    draws = torch.stack([(logits + reference.gumbel_noise(11, i, 5)).argmax() for i in range(5000)])
    shares = torch.bincount(draws, minlength=5) / len(draws)
    # Five standard deviations of a share, at most.
    assert (shares - torch.softmax(logits, 0)).abs().max() < 5 * (0.25 / len(draws)) ** 0.5


def test_the_noise_differs_by_seed_position_and_token() -> None:
    noise = torch.stack([reference.gumbel_noise(seed, at, 500) for seed in (0, 1, -1) for at in (0, 1, 2)])
    assert noise.flatten().unique().numel() > 0.999 * noise.numel()
    correlation = torch.corrcoef(noise) - torch.eye(len(noise))
    assert correlation.abs().max() < 0.25


def test_the_constants_fit_the_vocabularies_of_today() -> None:
    assert -(-262144 // sampling.CHUNK) <= 256


def test_penalties() -> None:
    g = next(generators(1, 5))
    rows, size, histories = 5, 2500, 3
    history = torch.randint(0, 6, (histories, size), generator=g, dtype=torch.int32)
    history[torch.rand(history.shape, generator=g) < 0.7] = 0
    slots = torch.tensor([2, -1, 0, 1, 1], dtype=torch.int32)
    repetition = torch.tensor([1.3, 9.0, 1.0, 0.5, 1e-30])
    frequency, presence = torch.tensor([0.5, 9.0, -1.0, 0.0, 0.0]), torch.tensor([0.25, 9.0, 0.0, 1.5, 0.0])
    logits = 3 * torch.randn((rows, size), generator=g)
    expected = logits.clone()
    parameters = (history, slots, repetition, frequency, presence)
    penalize(logits, *parameters)
    reference.penalize(expected, *parameters)
    torch.testing.assert_close(logits, expected, rtol=1e-6, atol=1e-6)


def test_record() -> None:
    history = torch.zeros((3, 50), dtype=torch.int32)
    slots = torch.tensor([2, -1, 0, 1, 2], dtype=torch.int32)
    tokens = torch.tensor([7, 7, 49, -1, 7])
    expected = history.clone()
    record(history, slots, tokens, max_rows=6)
    reference.record(expected, slots, tokens)
    assert torch.equal(history, expected)
    assert history[2, 7] == 4

"""The sampler against plain definitions, and its promise that neighbours do not matter."""

from collections import Counter
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pllm.runtime.random_stream import sequence_seed, uniform
from pllm.runtime.row_ops import NumpyRowOps
from pllm.runtime.sampling import Sampler
from pllm.runtime.sampling_params import SamplingParams
from pllm.runtime.step import SampledToken, SampleSpec

SAMPLER = Sampler()
RNG = np.random.default_rng(7)
ROW = (RNG.standard_normal(50) * 2).astype(np.float32)
ORDER = np.argsort(-ROW)  # likeliest first
BEST = int(ORDER[0])


def spec(
    seq_id: int = 0, prompt: tuple[int, ...] = (1, 2), output: tuple[int, ...] = (), seed: int = 0, **fields: Any
) -> SampleSpec:
    words = fields.pop("bad_words_token_ids", ())
    return SampleSpec(seq_id, SamplingParams(**fields), prompt, output, seed, (49,), words)


def token(row: np.ndarray = ROW, **fields: Any) -> int:
    (sampled,) = SAMPLER.sample(row[None], [(spec(**fields),)])
    assert sampled.error is None
    return sampled.token_id


def drawn(count: int = 400, **fields: Any) -> set[int]:
    """What comes up in many draws."""
    rows = np.repeat(ROW[None], count, axis=0)
    sampled = SAMPLER.sample(rows, [(spec(seed=seed, **fields),) for seed in range(count)])
    return {each.token_id for each in sampled}


def probabilities(row: np.ndarray) -> np.ndarray:
    weights = np.exp(row.astype(np.float64) - row.max())
    return weights / weights.sum()


# --- the draw


@pytest.mark.parametrize(
    ("fields", "kept"),
    [
        ({}, 50),
        ({"temperature": 0.5}, 50),
        ({"temperature": 2.0}, 50),
        ({"top_k": 5}, 5),
        ({"top_p": 0.7}, None),
        ({"min_p": 0.2}, None),
        ({"top_k": 10, "top_p": 0.8, "min_p": 0.05, "temperature": 1.5}, None),
    ],
)
def test_draws_follow_the_distribution(fields: dict[str, Any], kept: int | None) -> None:
    expected = probabilities(ROW / np.float32(fields.get("temperature", 1)))
    expected[expected < fields.get("min_p", 0) * expected.max()] = 0
    expected[ORDER[fields.get("top_k", 50) :]] = 0
    expected /= expected.sum()
    before = np.cumsum(expected[ORDER]) - expected[ORDER]
    expected[ORDER[before >= fields.get("top_p", 1)]] = 0
    expected /= expected.sum()
    if kept:
        assert np.count_nonzero(expected) == kept

    count = 6_000
    rows = np.broadcast_to(ROW, (count, 50))
    sampled = SAMPLER.sample(rows, [(spec(seed=seed, **fields),) for seed in range(count)])
    seen = np.bincount([each.token_id for each in sampled], minlength=50)
    assert not seen[expected == 0].any(), "a token that was left out"
    big = expected * count >= 5
    chi_square = ((seen - expected * count) ** 2)[big] / (expected * count)[big]
    degrees = int(big.sum())
    assert chi_square.sum() < degrees + 4 * (2 * degrees) ** 0.5


def test_draws_of_one_sequence_follow_the_distribution_too() -> None:
    row = np.log(np.array([[0.1, 0.2, 0.3, 0.4]], np.float32))
    counts: Counter[int] = Counter()
    pairs: Counter[tuple[int, int]] = Counter()
    last = 0
    for position in range(4000):
        (sampled,) = SAMPLER.sample(row, [(spec(output=(0,) * position, seed=5),)])
        counts[sampled.token_id] += 1
        pairs[last, sampled.token_id] += 1
        last = sampled.token_id
    for each, share in enumerate((0.1, 0.2, 0.3, 0.4)):
        assert abs(counts[each] - 4000 * share) < 4 * (4000 * share) ** 0.5
    assert abs(pairs[3, 3] - 4000 * 0.16) < 4 * 640**0.5, "what was drawn last does not matter"


def test_a_uniform_is_where_the_sum_in_order_of_id_passes_it() -> None:
    row = np.log(np.array([[0.25, 0.25, 0.5]], np.float32))
    ops = NumpyRowOps()

    def pick(u: float) -> int:
        settings = {"temperature": 1, "top_p": 1, "min_p": 0}
        arrays = {name: np.array([value], np.float32) for name, value in settings.items()}
        ids, _ = ops.sample_rows(row, top_k=np.zeros(1, np.int32), uniform=np.array([u]), **arrays)
        return int(ids[0])

    assert [pick(u) for u in (0, 0.2499, 0.2501, 0.4999, 0.5001, 1 - 2**-53)] == [0, 0, 1, 1, 2, 2]


def test_a_uniform_of_zero_takes_the_first_token_that_is_left() -> None:
    arrays = {name: np.ones(1, np.float32) for name in ("temperature", "top_p")}
    row = np.array([[-np.inf, -np.inf, 0, 0]], np.float32)
    ids, _ = NumpyRowOps().sample_rows(
        row, top_k=np.zeros(1, np.int32), min_p=np.zeros(1, np.float32), uniform=np.zeros(1), **arrays
    )
    assert ids.tolist() == [2]


def test_ties() -> None:
    row = np.array([1, 3, 3, 3, 0], np.float32)
    assert token(row, temperature=0) == 1
    flat = np.zeros((300, 8), np.float32)
    for fields, expected in (
        ({"top_k": 2}, set(range(8))),  # as many as tie with the second largest
        ({"top_p": 0.5}, {0, 1, 2, 3}),
        ({"top_p": 1e-9}, {0}),
        ({"top_k": 1, "min_p": 1.0}, set(range(8))),
    ):
        sampled = SAMPLER.sample(flat, [(spec(seed=seed, **fields),) for seed in range(300)])
        assert {each.token_id for each in sampled} == expected, fields


def test_greedy_and_everything_that_amounts_to_it() -> None:
    assert token(temperature=0) == token(temperature=9e-6) == token(temperature=1e-5) == BEST
    assert drawn(top_k=1) == drawn(top_p=1e-9) == drawn(min_p=1.0) == {BEST}


def test_a_large_vocabulary_draws_from_its_nucleus() -> None:
    row = (np.random.default_rng(3).standard_normal(150_000) * 3).astype(np.float32)
    expected = probabilities(row)
    order = np.argsort(-expected, kind="stable")
    before = np.cumsum(expected[order]) - expected[order]
    nucleus = set(order[before < 0.3].tolist())
    sampled = SAMPLER.sample(np.broadcast_to(row, (50, 150_000)), [(spec(seed=seed, top_p=0.3),) for seed in range(50)])
    assert {each.token_id for each in sampled} <= nucleus


# --- what changes logits


def test_allowed_token_ids() -> None:
    assert drawn(allowed_token_ids=[3, 7]) == {3, 7}
    assert token(temperature=0, allowed_token_ids=[int(ORDER[9]), int(ORDER[4])]) == ORDER[4]


def test_logit_bias() -> None:
    assert token(temperature=0, logit_bias={5: 100}) == 5
    assert token(temperature=0, logit_bias={BEST: -100}) == ORDER[1]
    assert token(temperature=0, logit_bias={BEST: -100, 60: 3}) == ORDER[1], "an id that the row lacks is passed over"


def test_bad_words() -> None:
    second = int(ORDER[1])
    assert token(temperature=0, bad_words_token_ids=((BEST,),)) == second
    words = ((4, 5, BEST),)
    assert token(temperature=0, bad_words_token_ids=words, output=(9, 4, 5)) == second
    assert token(temperature=0, bad_words_token_ids=words, output=(4, 5, 9)) == BEST
    assert token(temperature=0, bad_words_token_ids=words, output=(5,)) == BEST
    assert token(temperature=0, bad_words_token_ids=words, prompt=(4, 5)) == BEST, "a word is what is generated"
    assert token(temperature=0, bad_words_token_ids=((), (999,))) == BEST


def test_min_tokens_keeps_the_end_away() -> None:
    row = ROW.copy()
    row[49], row[8] = 30, 20
    fields: dict[str, Any] = {"temperature": 0, "min_tokens": 3, "stop_token_ids": [8]}
    assert token(row, output=(1, 2), **fields) == ORDER[1]
    assert BEST == 49
    assert token(row, output=(1, 2, 3), **fields) == 49
    assert token(row, output=(1, 2), ignore_eos=True, **fields) == 49, "not an end then"


def test_penalties() -> None:
    row = np.array([1.0, 0.9, -0.5, -0.6], np.float32)
    assert token(row, temperature=0, presence_penalty=0.2, output=(0,)) == 1
    assert token(row, temperature=0, presence_penalty=0.2, output=(0, 0, 1)) == 0, "once, however often"
    assert token(row, temperature=0, frequency_penalty=0.2, output=(0, 0, 1)) == 1, "for each time"
    assert token(row, temperature=0, presence_penalty=0.2, prompt=(0,)) == 0, "only for output"
    assert token(row, temperature=0, repetition_penalty=1.2, prompt=(0,)) == 1, "for the prompt too"
    assert token(row[2:], temperature=0, repetition_penalty=1.5, prompt=(), output=(0,)) == 1, (
        "negative ones are multiplied"
    )
    assert token(row, temperature=0, presence_penalty=-0.2, output=(1,)) == 1
    for tiny in (1e-38, 1e-50):
        assert token(row * 10, temperature=0, repetition_penalty=tiny, prompt=(0, 1)) == 0, "no infinity"
        assert token(row * 10, temperature=1, repetition_penalty=tiny, prompt=(1,)) == 1


def test_logits_are_never_changed() -> None:
    rows = np.stack([ROW, ROW, ROW])
    specs = [(spec(repetition_penalty=2),), (spec(), spec(logit_bias={3: 9})), (spec(temperature=0, logprobs=3),)]
    SAMPLER.sample(rows, specs)
    assert (rows == ROW).all()
    rows.flags.writeable = False
    SAMPLER.sample(rows, specs)


# --- independence

FIELDS = st.fixed_dictionaries(
    {"temperature": st.sampled_from([0.0, 0.7, 1.3])},
    optional={
        "top_k": st.integers(1, 60),
        "top_p": st.floats(0.05, 1),
        "min_p": st.floats(0, 0.5),
        "repetition_penalty": st.sampled_from([0.7, 1.3]),
        "frequency_penalty": st.sampled_from([-0.5, 0.5]),
        "logit_bias": st.just({3: 2.0}),
        "logprobs": st.integers(0, 5),
        "output": st.lists(st.integers(0, 49), max_size=5).map(tuple),
        "seed": st.integers(0, 2**64 - 1),
    },
)


@given(rows=st.lists(st.tuples(st.integers(0, 99), FIELDS), min_size=1, max_size=6))
@settings(max_examples=60, deadline=None)
def test_alone_is_as_in_a_batch_to_the_bit(rows: list[tuple[int, dict[str, Any]]]) -> None:
    logits = np.stack([np.random.default_rng(seed).standard_normal(50).astype(np.float32) * 3 for seed, _ in rows])
    specs = [spec(index, **fields) for index, (_, fields) in enumerate(rows)]
    together = SAMPLER.sample(logits, [(each,) for each in specs])
    apart = [SAMPLER.sample(logits[index : index + 1].copy(), [(each,)])[0] for index, each in enumerate(specs)]
    assert together == apart


def test_many_from_one_row_are_as_from_rows_of_their_own() -> None:
    specs = [spec(index, seed=index, top_p=0.9, logprobs=1) for index in range(8)]
    assert SAMPLER.sample(ROW[None], [specs]) == SAMPLER.sample(np.stack([ROW] * 8), [(each,) for each in specs])


def test_a_draw_is_a_function_of_seed_and_position_only() -> None:
    assert token(seed=1, output=(1, 2, 3)) == token(seed=1, output=(7, 8, 9), prompt=(4,))
    assert len({token(seed=seed) for seed in range(40)}) > 5
    assert len({token(seed=1, output=(0,) * position) for position in range(40)}) > 5


def test_the_stream_is_stable() -> None:
    """These numbers are a promise: a seed gives the same tokens in every version."""
    assert [sequence_seed(42, index) for index in range(2)] == [10946711343035318437, 5778872897239198114]
    assert sequence_seed(-1, 0) == sequence_seed(2**64 - 1, 0)
    assert [uniform(42, position) for position in range(3)] == [
        0.5961188718302076,
        0.1603653875985772,
        0.16639780398145976,
    ]
    draws = [
        uniform(sequence_seed(seed, index), position)
        for seed in range(20)
        for index in range(5)
        for position in range(50)
    ]
    assert len(set(draws)) == len(draws)
    assert abs(np.mean(draws) - 0.5) < 0.02
    assert all(0 <= draw < 1 for draw in draws)


# --- log probabilities


def test_logprobs_are_of_the_raw_logits() -> None:
    fields: dict[str, Any] = {"temperature": 0.3, "top_k": 3, "repetition_penalty": 1.5, "logit_bias": {9: 5.0}}
    (sampled,) = SAMPLER.sample(ROW[None], [(spec(logprobs=4, **fields),)])
    assert sampled.logprobs is not None
    expected = np.log(probabilities(ROW))
    assert sampled.logprobs.token_id == sampled.token_id
    assert sampled.logprobs.logprob == pytest.approx(expected[sampled.token_id], abs=1e-6)
    assert sampled.logprobs.rank == 1 + int(np.sum(ROW[sampled.token_id] < ROW))
    assert [each for each, _, _ in sampled.logprobs.top] == ORDER[:4].tolist()
    assert [value for _, value, _ in sampled.logprobs.top] == pytest.approx(expected[ORDER[:4]].tolist(), abs=1e-6)
    assert [rank for _, _, rank in sampled.logprobs.top] == [1, 2, 3, 4]


def test_ranks_break_ties_by_id_and_agree() -> None:
    (sampled,) = SAMPLER.sample(np.array([[2, 3, 2, 2]], np.float32), [(spec(logprobs=4, allowed_token_ids=[2]),)])
    assert sampled.logprobs is not None
    assert (sampled.logprobs.token_id, sampled.logprobs.rank) == (2, 3)
    assert [(each, rank) for each, _, rank in sampled.logprobs.top] == [(1, 1), (0, 2), (2, 3), (3, 4)]


def test_no_alternatives_and_more_than_there_are() -> None:
    for count, expected in ((0, 0), (20, 3)):
        (sampled,) = SAMPLER.sample(np.array([[1, 2, 3]], np.float32), [(spec(logprobs=count),)])
        assert sampled.logprobs is not None
        assert len(sampled.logprobs.top) == expected
    assert SAMPLER.sample(ROW[None], [(spec(),)])[0].logprobs is None


def test_prompt_logprobs() -> None:
    rows = RNG.standard_normal((4, 50)).astype(np.float32)
    entries = SAMPLER.prompt_logprobs(rows, [7, 0, 49, 7], 2)
    for row, target, entry in zip(rows, [7, 0, 49, 7], entries, strict=True):
        expected = np.log(probabilities(row))
        assert (entry.token_id, len(entry.top)) == (target, 2)
        assert entry.logprob == pytest.approx(expected[target], abs=1e-6)


# --- failures


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize(
    "fields", [{"temperature": 0}, {}, {"top_k": 3, "top_p": 0.5}, {"repetition_penalty": 1.1}, {"logprobs": 2}]
)
def test_a_row_that_is_not_finite_fails_alone(bad: float, fields: dict[str, Any]) -> None:
    rows = np.stack([ROW] * 3)
    rows[1, 20] = bad
    first, second, third = SAMPLER.sample(rows, [(spec(index, **fields),) for index in range(3)])
    assert "not finite" in str(second.error)
    alone = SAMPLER.sample(ROW[None], [(spec(0, **fields),)])[0]
    assert first == alone
    assert (third.token_id, third.error) == (alone.token_id, None)


def test_masked_logits_are_fine_but_not_all_of_them() -> None:
    row = np.full(10, -np.inf, np.float32)
    row[4] = 0
    assert {token(row, seed=seed) for seed in range(20)} == {4}
    (sampled,) = SAMPLER.sample(np.full((1, 10), -np.inf, np.float32), [(spec(),)])
    assert "not finite" in str(sampled.error)


def test_nothing_left_to_choose_from() -> None:
    (sampled,) = SAMPLER.sample(ROW[None], [(spec(allowed_token_ids=[49], min_tokens=2),)])
    assert isinstance(sampled, SampledToken)
    assert "leave no token" in str(sampled.error)

"""Paged attention on every instruction set, against the specification."""

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pllm.kernels.cpu.library import CpuLibrary, OperatorError
from pllm.kernels.quantization import cache_parts, round_rows

from .arrays import Step, view

RUN = 128
"""Keys whose weights are rounded by one step, over an int8 pool."""


def tolerance(step: Step) -> float:
    """How far an element of the output may be from the reference's.

    Over an int8 pool queries and weights are rounded to 16 bits. An element of q is off by half a step at most, and a
    step is max|q| / 32767: a score is off by scale x |k|'s size x a step / sqrt(12), as a standard deviation, and its
    weight by that share of it. A weight is off by half a step at most, too, and a step is the largest weight of a run
    of 128 keys, no more than 1, / 32767. Both reach the output through the values, whose size is that of their largest
    element here: some three deviations.
    """
    if step.kv.dtype != torch.int8 or not step.q.numel():
        return 3e-5
    values, scales = cache_parts(step.kv)
    pool = (values.float() * scales[..., None])[scales.isfinite()]
    rows = torch.cat((pool, step.k.flatten(0, 1), step.v.flatten(0, 1)))
    deviation = 1 / 32767 / math.sqrt(12)
    score = step.scale * float(step.q.abs().max() * rows.norm(dim=1).max()) * deviation
    largest: float = rows.abs().max().item()
    return 3e-5 + (score + math.sqrt(RUN) * deviation) * largest


def check(library: CpuLibrary, step: Step) -> None:
    """The output and the whole pool are what the reference says, on one thread and on two, in the same bits."""
    expected, pool = step.expected()
    allowed = tolerance(step)
    runs = []
    for threads in (1, 2):
        library.set_num_threads(threads)
        out, kv = step.run(library)
        torch.testing.assert_close(out, expected, rtol=3e-5, atol=allowed)
        assert torch.equal(kv.view(torch.uint8), pool.view(torch.uint8)), "the pool differs: a wrong or a stray write"
        runs.append(out)
    assert torch.equal(runs[0], runs[1])


DTYPES = (torch.float32, torch.bfloat16, torch.int8)
RAGGED = [(1, 1), (1, 16), (1, 17), (5, 5), (16, 32), (1, 200), (70, 131), (0, 9), (1, 33)]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"strided": False},
        {"sliding_window": 1},
        {"sliding_window": 40},
        {"softcap": 5.0},
        {"sinks": True},
        {"sinks": True, "sliding_window": 17, "softcap": 2.0},
        {"heads": 2},
        {"heads": 6},
        {"heads": 8},
        {"heads": 16},
        {"heads": 5, "kv_heads": 1, "head_dim": 8},
        {"head_dim": 24},
        {"head_dim": 128},
        {"head_dim": 80, "heads": 3, "kv_heads": 1},
        {"head_dim": 8, "heads": 2},
        {"head_dim": 256, "heads": 2, "kv_heads": 1},
        {"head_dim": 512, "heads": 4, "kv_heads": 1},
        {"block_size": 1},
        {"block_size": 5},
        {"block_size": 32},
        {"block_size": 64},
    ],
    ids=str,
)
def test_a_ragged_batch_is_the_specification(library: CpuLibrary, dtype: torch.dtype, options: dict[str, Any]) -> None:
    check(library, Step.random(1, RAGGED, dtype=dtype, **options))


@pytest.mark.parametrize("window", [0, 600])
@pytest.mark.parametrize("heads", [4, 16])
@pytest.mark.parametrize(("sinks", "dtype"), [(False, torch.bfloat16), (True, torch.bfloat16), (True, torch.int8)])
def test_long_contexts_cut_into_spans(
    library: CpuLibrary, window: int, heads: int, sinks: bool, dtype: torch.dtype
) -> None:
    lengths = [(1, 1500), (1, 1024), (1, 1025), (7, 1540), (1, 512), (1, 513), (3, 514)]
    options: dict[str, Any] = {"head_dim": 32, "block_size": 64, "sliding_window": window, "sinks": sinks}
    check(library, Step.random(2, lengths, heads=heads, dtype=dtype, **options))


@st.composite
def steps(draw: st.DrawFn) -> Step:
    kv_heads = draw(st.sampled_from([1, 2, 3]))
    news = draw(st.lists(st.one_of(st.just(1), st.integers(0, 60)), min_size=1, max_size=5))
    lengths = [(new, new + draw(st.integers(0 if new else 1, 150))) for new in news]
    return Step.random(
        draw(st.integers(0, 1 << 30)),
        lengths,
        heads=kv_heads * draw(st.integers(1, 6)),
        kv_heads=kv_heads,
        head_dim=8 * draw(st.integers(1, 18)),
        block_size=draw(st.sampled_from([1, 3, 8, 16, 32, 48])),
        dtype=draw(st.sampled_from(DTYPES)),
        sinks=draw(st.booleans()),
        strided=draw(st.booleans()),
        sliding_window=draw(st.sampled_from([0, 0, 1, 2, 15, 64, 1000])),
        softcap=draw(st.sampled_from([0.0, 0.0, 3.0])),
    )


@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
@given(step=steps())
def test_random_steps_are_the_specification(library: CpuLibrary, step: Step) -> None:
    check(library, step)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.int8])
@pytest.mark.parametrize("heads", [4, 16])
def test_a_sequence_alone_is_the_same_bits_as_in_a_batch(library: CpuLibrary, heads: int, dtype: torch.dtype) -> None:
    step = Step.random(4, [*RAGGED, (1, 700), (90, 640)], heads=heads, dtype=dtype)
    together, _ = step.run(library)
    for b in range(len(step.context_len)):
        alone, _ = step.only(b).run(library)
        assert torch.equal(alone, together[int(step.query_start[b]) : int(step.query_start[b + 1])])


@pytest.mark.parametrize("dtype", DTYPES)
def test_how_a_prompt_is_chunked_changes_only_the_rounding(library: CpuLibrary, dtype: torch.dtype) -> None:
    step = Step.random(5, [(110, 110)], dtype=dtype)
    whole, pool = step.run(library)
    for chunks in ([1] * 20 + [90], [60, 50], [33, 1, 1, 64, 11]):
        kv, parts, done = step.kv.clone(), [], 0
        for chunk in chunks:
            rows = slice(done, done + chunk)
            done += chunk
            part = replace(
                step, q=step.q[rows], k=step.k[rows], v=step.v[rows], kv=kv,
                query_start=torch.tensor([0, chunk], dtype=torch.int32),
                context_len=torch.tensor([done], dtype=torch.int32),
            )  # fmt: skip
            out, kv = part.run(library)
            parts.append(out)
        torch.testing.assert_close(torch.cat(parts), whole, rtol=2e-5, atol=2e-5)
        assert torch.equal(kv.view(torch.uint8), pool.view(torch.uint8))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("row", [0, 5, 21])
def test_nan_stays_in_its_row(library: CpuLibrary, dtype: torch.dtype, bad: float, row: int) -> None:
    """NaN, and infinity, which makes NaN of a softmax; in a row of a decode, of a prompt, of many spans."""
    step = Step.random(6, [(1, 40), (20, 30), (1, 1500)], dtype=dtype)
    clean, _ = step.run(library)
    q = step.q.clone()
    q[row, 1, 3] = bad
    spoilt, _ = replace(step, q=q).run(library)
    assert torch.isnan(spoilt[row, 1]).all()
    spoilt[row, 1] = clean[row, 1]
    assert torch.equal(spoilt, clean)


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
@pytest.mark.parametrize("kind", ["k", "v"])
def test_a_spoilt_key_or_value_reaches_only_who_sees_it(library: CpuLibrary, kind: str, bad: float) -> None:
    """In an int8 pool, whose scales would spoil what was gathered beside them."""
    step = Step.random(13, [(1, 40), (20, 30), (1, 50)], dtype=torch.int8)
    clean, _ = step.run(library)
    for row in (0, 11):
        changed = getattr(step, kind).clone()
        changed[row, 0, 2] = bad
        spoilt, _ = replace(step, **{kind: changed}).run(library)
        sees = torch.zeros(clean.shape[:2], dtype=torch.bool)
        sees[row : 1 if row == 0 else 21, :2] = True  # the later rows of its sequence, the heads of its group
        assert not torch.isfinite(spoilt[sees]).any() or kind == "k"
        assert torch.equal(spoilt[~sees], clean[~sees])
        if bad != bad:
            assert torch.isnan(spoilt[sees]).all()


@pytest.mark.parametrize("new", [1, 40])
def test_small_weights_beside_a_sink_count(library: CpuLibrary, new: int) -> None:
    """One key has nearly all the weight, and 4,000 others together enough to matter. Only in the sink's own run of keys
    are they rounded beside it: there all of them together may be off by half a step each."""
    step = Step.random(14, [(new, 4000)], dtype=torch.int8, strided=False)
    g = torch.Generator().manual_seed(15)
    values, scales = cache_parts(step.kv)
    for position in range(4000 - new):
        key, value = torch.randn((2, 64), generator=g), 3 + 0.2 * torch.randn((2, 64), generator=g)
        if position == 5:
            key, value = torch.full((2, 64), 2.0), torch.full((2, 64), -3.0)
        block, offset = int(step.block_table[0, position // 16]), position % 16
        values[block, 1, :, :, offset], scales[block, 1, :, :, offset] = round_rows(torch.stack((key, value)))
    q = 1 + 0.1 * torch.randn(step.q.shape, generator=g)
    step = replace(step, q=q, v=torch.full_like(step.v, 3.0))
    expected, _ = step.expected()
    assert -2.95 < float(expected.mean()) < -2.8, "the sink has most of the weight, and the rest matters"
    out, _ = step.run(library)
    assert float((out - expected).abs().max()) < tolerance(step) + RUN / 2 / 32767 * 4


@pytest.mark.parametrize("lengths", [[(1, 160)] * 4, [(1, 2000)], [(60, 160)], [(60, 2000)]], ids=str)
def test_words_cost_little_beyond_the_pool_s_own_rounding(library: CpuLibrary, lengths: list[tuple[int, int]]) -> None:
    """Beside a softmax in float64 over what the pool holds. Rounding to int8 itself is a hundred times coarser."""
    step = Step.random(16, lengths, heads=8, kv_heads=4, head_dim=128, dtype=torch.int8, scale=128**-0.5)
    step = replace(step, q=step.q / 3)  # of standard deviation 1, like keys and values
    out, kv = step.run(library)
    values, scales = cache_parts(kv)
    pool, squares = values.double() * scales[..., None].double(), []
    for b, (new, context) in enumerate(lengths):
        positions, rows = torch.arange(context), slice(int(step.query_start[b]), int(step.query_start[b + 1]))
        cached = pool[step.block_table[b].long()[positions // 16], step.layer, :, :, positions % 16]
        key, value = (cached[:, i].repeat_interleave(2, dim=1) for i in (0, 1))
        logits = torch.einsum("thd,shd->hts", step.q[rows].double(), key) * step.scale
        logits = logits.masked_fill(positions > positions[context - new :, None], -torch.inf)
        exact = torch.einsum("hts,shd->thd", logits.softmax(-1), value)
        squares.append((out[rows] - exact).square())
    error = torch.cat(squares)
    assert float(error.max().sqrt()) < 2e-4
    assert float(error.mean().sqrt()) < 2e-5


def test_extreme_scores_do_not_overflow(library: CpuLibrary) -> None:
    step = replace(Step.random(7, [(1, 100), (40, 90)]), scale=30.0)  # logits of a thousand, with ulps of 1e-4
    out, _ = step.run(library)
    torch.testing.assert_close(out, step.expected()[0], rtol=2e-3, atol=2e-3)


def test_rounding_to_bfloat16_is_to_nearest_even(library: CpuLibrary) -> None:
    step = Step.random(8, [(2, 2)], kv_heads=1, heads=1)
    halves = torch.tensor([1 + 2**-8, 1 + 3 * 2**-8, -(1 + 2**-8), 3.4e38, 1e-40, torch.nan, torch.inf, -0.0])
    k = step.k.clone()
    k[0, 0, :8] = halves
    _, kv = replace(step, k=k).run(library)
    got = kv[int(step.block_table[0, 0]), 1, 0, 0, 0, :8]
    assert torch.equal(got.view(torch.int16)[:5], halves.to(torch.bfloat16).view(torch.int16)[:5])
    assert torch.isnan(got[5])
    assert torch.equal(got.view(torch.int16)[6:], halves.to(torch.bfloat16).view(torch.int16)[6:])


def test_keys_and_values_in_int8_have_a_scale_each(library: CpuLibrary) -> None:
    """To the nearest 127th of each one's largest element, ties to even; whatever the sizes of its neighbours."""
    step = Step.random(12, [(5, 5)], kv_heads=2, heads=2, head_dim=24, dtype=torch.int8)
    k = step.k.clone()
    k[0, 0] = torch.tensor([127, *(sign * (i + 0.5) for sign in (1, -1) for i in range(11)), -3.0])
    k[1, 0], k[1, 1] = 0.0, 1e-6 * k[1, 1]
    k[2, 0] = 1e-38  # one of its 127 steps is no float any more
    k[3, 0, 20] = torch.nan
    k[4, 1, 3] = -torch.inf
    _, kv = replace(step, k=k).run(library)
    values, scales = (part[int(step.block_table[0, 0]), 1] for part in cache_parts(kv))
    ties = [0, 2, 2, 4, 4, 6, 6, 8, 8, 10, 10]
    assert values[0, 0, 0].tolist() == [127, *ties, *(-each for each in ties), -3]
    assert float(scales[0, 0, 0]) == 1
    assert not values[0, 0, 1].any() and not values[0, 0, 2].any()
    assert float(scales[0, 0, 1]) == 0
    assert values[0, 1, 1].abs().max() == 127
    assert not scales[0, 0, 3].isfinite()
    assert not scales[0, 1, 4].isfinite()
    rest = torch.stack((step.k, step.v))[:, 1:].transpose(1, 2)
    error = (values[:, :, 1:5].float() * scales[:, :, 1:5, None] - rest).abs()[1]
    assert (error <= scales[1, :, 1:5, None] * (0.5 + 1e-4)).all()


def test_a_pool_of_another_width_is_refused(library: CpuLibrary) -> None:
    step = Step.random(9, [(2, 40)], dtype=torch.int8)
    _refused(library, replace(step, kv=step.kv[..., :-4].contiguous()), "shapes differ")
    _refused(library, replace(step, kv=step.kv.view(torch.bfloat16)), "shapes differ")


def _refused(library: CpuLibrary, step: Step, match: str) -> None:
    pool = step.kv.clone()
    with pytest.raises(OperatorError, match=match):
        library.paged_attention(
            view(step.q), view(step.k), view(step.v), view(step.kv), view(step.block_table), view(step.query_start),
            view(step.context_len), layer=step.layer, sliding_window=step.sliding_window, softcap=step.softcap,
        )  # fmt: skip
    assert torch.equal(pool.view(torch.uint8), step.kv.view(torch.uint8)), "written before it was checked"


def test_what_does_not_fit_is_refused_before_anything_is_written(library: CpuLibrary) -> None:
    step = Step.random(9, [(2, 40), (1, 20)])

    def table(b: int, i: int, block: int) -> torch.Tensor:
        changed = step.block_table.clone()
        changed[b, i] = block
        return changed

    def integers(*values: int) -> torch.Tensor:
        return torch.tensor(values, dtype=torch.int32)

    for bad in (-1, len(step.kv), 2**31 - 1):
        _refused(
            library, replace(step, block_table=table(0, 0, bad)), f"sequence 0, block 0: id {bad} is outside the pool"
        )
        _refused(library, replace(step, block_table=table(1, 1, bad)), "sequence 1, block 1")
    _refused(library, replace(step, context_len=integers(40, 200)), "block table is 4 wide")
    _refused(library, replace(step, context_len=integers(1, 20)), "a context of 1")
    _refused(library, replace(step, context_len=integers(40, -5)), "a context of -5")
    _refused(library, replace(step, query_start=integers(0, 2, 4)), "there are 3 tokens")
    _refused(library, replace(step, query_start=integers(0, 4, 3)), "falls")
    _refused(library, replace(step, query_start=integers(1, 2, 3)), "query_start")
    _refused(library, replace(step, layer=3), "layer 3 of 3")
    _refused(library, replace(step, layer=-1), "layer -1")
    _refused(library, replace(step, sliding_window=-1), "window")
    _refused(library, replace(step, softcap=-1.0), "soft cap")
    _refused(library, replace(step, q=step.q.repeat(1, 1, 1)[:, :3]), "3 query heads")
    spread = torch.zeros(3, 4, 128)[..., ::2]
    _refused(library, replace(step, q=spread), "must be contiguous")
    odd = Step.random(9, [(1, 2)], head_dim=12)
    _refused(library, odd, "head_dim 12")


def test_a_block_below_the_window_is_not_needed(library: CpuLibrary) -> None:
    step = Step.random(10, [(1, 100)], sliding_window=20)
    step.block_table[0, :5] = -1  # positions 0..79; the query at 99 sees 80..99
    check(library, step)


def test_copied_blocks(library: CpuLibrary) -> None:
    kv = np.random.default_rng(0).integers(0, 60000, (6, 2, 2, 1, 4, 8)).astype(np.uint16)
    expected = kv.copy()
    expected[1] = expected[4]
    expected[0] = expected[1]
    library.copy_blocks(kv, np.array([[4, 1], [1, 0], [3, 3]]))
    assert np.array_equal(kv, expected)
    for bad in (-1, 6):
        with pytest.raises(OperatorError, match=f"id {bad} is outside the pool of 6"):
            library.copy_blocks(kv, np.array([[0, 1], [2, bad]]))
    assert np.array_equal(kv, expected)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.int8])
def test_both_instruction_sets_agree(open_as: Callable[[str], CpuLibrary], dtype: torch.dtype) -> None:
    step = Step.random(11, RAGGED, head_dim=128, dtype=dtype)
    outputs = [step.run(open_as(isa))[0] for isa in ("avx2", "avx512")]
    torch.testing.assert_close(outputs[0], outputs[1], rtol=2e-5, atol=2e-5)

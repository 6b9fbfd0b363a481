"""Decode and prefill attention against the specification: float32 and float16, which the interpreter multiplies."""

from typing import Any

import pytest
import torch

from pllm.kernels.cuda.configurations import DecodeConfiguration, PrefillConfiguration
from pllm.kernels.cuda.decode_attention import decode_attention
from pllm.kernels.cuda.prefill_attention import prefill_attention

from .cases import Step, generators, relative_error

EDGES = [(1, 1), (1, 15), (1, 16), (1, 17), (1, 64), (1, 65), (1, 150)]
"""One new token: the first of all, and contexts about a block's and a tile's edge."""
RAGGED = [(0, 9), (5, 5), (1, 33), (16, 32), (1, 1), (0, 0), (23, 70), (2, 66)]


def decode(step: Step, *, programs: int = 6, block_n: int = 16, min_tiles: int = 1) -> torch.Tensor:
    out = torch.full(step.q.shape, torch.nan, dtype=step.q.dtype)
    arrivals = torch.zeros((step.q.shape[0], step.kv.shape[3]), dtype=torch.int32)
    decode_attention(
        step.q, step.kv, step.block_table, step.query_start, step.context_len, step.sinks, arrivals, out,
        layer=step.layer, scale=step.scale, sliding_window=step.sliding_window, softcap=step.softcap,
        k_scale=step.k_scale, v_scale=step.v_scale, max_sequences=11,
        configuration=DecodeConfiguration(programs, block_n, num_warps=4, num_stages=2, min_tiles=min_tiles),
    )  # fmt: skip
    return out


def prefill(step: Step, *, block_m: int = 16, block_n: int = 16, least_tokens: int = 1) -> torch.Tensor:
    out = torch.full(step.q.shape, torch.nan, dtype=step.q.dtype)
    prefill_attention(
        step.q, step.kv, step.block_table, step.query_start, step.context_len, step.sinks, out,
        layer=step.layer, scale=step.scale, sliding_window=step.sliding_window, softcap=step.softcap,
        k_scale=step.k_scale, v_scale=step.v_scale, least_tokens=least_tokens, max_sequences=9,
        configuration=PrefillConfiguration(block_m, block_n, num_warps=4, num_stages=2),
    )  # fmt: skip
    return out


def check(step: Step, out: torch.Tensor, attended: list[bool]) -> None:
    """The sequences attended for are right, and not an element of any other row was written."""
    rows = torch.repeat_interleave(torch.tensor(attended), step.query_start.diff())
    rows = torch.cat((rows, torch.zeros(len(out) - len(rows), dtype=torch.bool)))
    assert torch.isnan(out[~rows]).all(), "a row was written that is no sequence's, or another kernel's"
    bound = 1e-5 if step.q.dtype == torch.float32 else 3e-3
    assert relative_error(out[rows], step.expected()[rows]) < bound


OPTIONS: list[dict[str, Any]] = [
    {},
    {"dtype": torch.float16},
    {"kv_dtype": torch.uint8, "heads": 2, "kv_heads": 1},
    {"kv_dtype": torch.float8_e4m3fn, "heads": 2, "kv_heads": 1},
    {"kv_dtype": torch.bfloat16, "heads": 3, "kv_heads": 1},
    {"sliding_window": 20},
    {"sliding_window": 1, "kv_heads": 1},
    {"softcap": 3.0, "kv_heads": 1},
    {"sinks": True, "sliding_window": 33, "heads": 14},
    {"heads": 20, "kv_heads": 1, "head_dim": 80},
    {"head_dim": 256, "heads": 1, "kv_heads": 1},
    {"block_size": 64, "kv_heads": 1},
    {"block_size": 5, "kv_heads": 1},
]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_one_new_token_each(options: dict[str, Any]) -> None:
    step = Step.random(next(generators(1, 1)), EDGES, **options)
    check(step, decode(step), [True] * len(EDGES))


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_many_new_tokens(options: dict[str, Any]) -> None:
    step = Step.random(next(generators(1, 2)), RAGGED, **options)
    check(step, prefill(step, block_m=32), [new > 0 for new, _ in RAGGED])


def test_a_mixed_step_is_shared_between_the_kernels() -> None:
    step = Step.random(next(generators(1, 3)), RAGGED)
    check(step, decode(step), [new == 1 for new, _ in RAGGED])
    check(step, prefill(step, least_tokens=2), [new > 1 for new, _ in RAGGED])


@pytest.mark.parametrize("programs", [1, 2, 3, 7, 64])
@pytest.mark.parametrize("min_tiles", [1, 3])
def test_however_the_keys_are_shared_out(programs: int, min_tiles: int) -> None:
    lengths = [(1, 200), (0, 3), (1, 1), (1, 31), (0, 0), (1, 48), (1, 16)]
    step = Step.random(next(generators(1, 4)), lengths, heads=2, kv_heads=1, head_dim=16, sinks=True)
    check(step, decode(step, programs=programs, min_tiles=min_tiles), [new == 1 for new, _ in lengths])


@pytest.mark.parametrize(("block_m", "block_n"), [(16, 16), (16, 64), (64, 16), (128, 32)])
def test_whatever_the_tiles(block_m: int, block_n: int) -> None:
    step = Step.random(next(generators(1, 5)), RAGGED, heads=3, kv_heads=1, head_dim=16)
    check(step, prefill(step, block_m=block_m, block_n=block_n), [new > 0 for new, _ in RAGGED])


def test_no_sequence_at_all() -> None:
    step = Step.random(next(generators(1, 6)), [(0, 0), (0, 12)])
    check(step, decode(step), [False, False])
    check(step, prefill(step), [False, False])


def test_nan_stays_in_its_sequence() -> None:
    step = Step.random(next(generators(1, 7)), [(1, 40), (1, 70), (1, 50)], heads=2, kv_heads=1)
    clean = decode(step, programs=4)
    step.q[1] = torch.nan
    spoilt = decode(step, programs=4)
    assert torch.isnan(spoilt[1]).all()
    assert torch.equal(spoilt[[0, 2]], clean[[0, 2]])


def test_large_logits_do_not_overflow() -> None:
    step = Step.random(next(generators(1, 8)), [(1, 90), (20, 40)], heads=2, kv_heads=1)
    step.q.mul_(100)
    rows, expected = decode(step), step.expected()
    assert relative_error(rows[:1], expected[:1]) < 1e-3
    assert relative_error(prefill(step)[:21], expected[:21]) < 1e-3


@pytest.mark.nightly
@pytest.mark.parametrize("seed", range(60))
def test_random_steps(seed: int) -> None:
    g = torch.Generator().manual_seed(1000 + seed)

    def pick(*choices: Any) -> Any:
        return choices[int(torch.randint(0, len(choices), (), generator=g))]

    lengths = []
    for _ in range(pick(1, 2, 5, 8)):
        new = pick(0, 1, 1, 1, 2, 17, 40)
        lengths.append((new, new + pick(0, 1, 15, 16, 63, 64, 65, 200)))
    kv_heads = pick(1, 2, 3)
    step = Step.random(
        g, lengths, heads=kv_heads * pick(1, 2, 3, 5, 8), kv_heads=kv_heads, head_dim=pick(64, 80, 96, 128),
        block_size=pick(8, 16, 24, 32, 64), dtype=pick(torch.float32, torch.float16),
        kv_dtype=pick(None, torch.uint8), sinks=pick(True, False), sliding_window=pick(0, 0, 1, 16, 50),
        softcap=pick(0.0, 0.0, 2.0),
    )  # fmt: skip
    news = [new for new, _ in lengths]
    decoded = decode(step, programs=pick(1, 5, 40), block_n=pick(16, 32, 64), min_tiles=pick(1, 2))
    check(step, decoded, [new == 1 for new in news])
    tiles = {"block_m": pick(16, 64), "block_n": pick(16, 64)}
    check(step, prefill(step, least_tokens=2, **tiles), [new > 1 for new in news])

"""Slots, and QK-norm + rotary embedding + write, against the specification."""

from typing import Any

import pytest
import torch

from pllm.kernels import reference
from pllm.kernels.cuda.cache_write import norm_rope_write, token_slots

from .cases import Step, generators, poisoned, relative_error


@pytest.mark.parametrize("block_size", [1, 7, 16])
def test_slots(block_size: int) -> None:
    lengths = [(0, 9), (5, 5), (1, 33), (16, 32), (1, 1), (0, 0), (40, 70), (1, 16)]
    step = Step.random(next(generators(1, 1)), lengths, block_size=block_size, kv_heads=1, heads=1, head_dim=16)
    inputs = (step.block_table, step.query_start, step.context_len)
    tokens = sum(step.new_tokens) + 5
    expected = reference.token_slots(*inputs, tokens, block_size)
    assert torch.equal(token_slots(*inputs, tokens, block_size, max_sequences=9), expected)
    assert (expected[-5:] == -1).all()


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"weighted": False},
        {"rotary": 0},
        {"rotary": 16},
        {"rotary": 16, "interleaved": True, "weighted": False},
        {"interleaved": True},
        {"offset": 1.0},
        {"heads": 5, "kv_heads": 3},
        {"heads": 1, "kv_heads": 1, "head_dim": 80, "rotary": 80},
        {"kv_dtype": torch.uint8},
        {"kv_dtype": torch.float16, "dtype": torch.float16},
        {"kv_dtype": torch.bfloat16},
        {"writes_q": False, "weighted": False, "rotary": 0},
    ],
    ids=str,
)
def test_norm_rope_write(options: dict[str, Any]) -> None:
    settings = {
        "heads": 4, "kv_heads": 2, "head_dim": 32, "rotary": 32, "interleaved": False, "weighted": True, "offset": 0.0,
        "dtype": torch.float32, "kv_dtype": torch.float32, "writes_q": True,
    } | options  # fmt: skip
    heads, kv_heads, head_dim, rotary = (settings[name] for name in ("heads", "kv_heads", "head_dim", "rotary"))
    dtype, kv_dtype = settings["dtype"], settings["kv_dtype"]
    g = next(generators(1, 2))
    tokens, block_size, blocks = 7, 4, 5
    merged = torch.randn((tokens, heads + 2 * kv_heads, head_dim), generator=g).to(dtype)
    q, k, v = merged.split((heads, kv_heads, kv_heads), dim=1)
    merged[-1] = torch.nan  # a row of no sequence
    angles = 7 * torch.rand((tokens, max(rotary, 2)), generator=g)
    cos, sin = (f(angles)[:, : rotary // 2] if rotary else None for f in (torch.cos, torch.sin))  # strided
    weights = tuple(torch.rand(head_dim, generator=g).to(dtype) if settings["weighted"] else None for _ in range(2))
    slots = torch.randperm(blocks * block_size, generator=g, dtype=torch.int32)[:tokens]
    slots[-1] = -1
    pool = poisoned((blocks, 2, 2, kv_heads, block_size, head_dim), kv_dtype)
    expected_pool, before = pool.clone(), pool.clone()
    rest = {"layer": 1, "eps": 1e-6, "weight_offset": settings["offset"], "interleaved": settings["interleaved"]}
    rest |= {"k_scale": 0.5, "v_scale": 2.0} if kv_dtype == torch.uint8 else {"k_scale": 1.0, "v_scale": 1.0}

    inputs = (q, k, v, cos, sin, *weights)
    q_out, arrivals = norm_rope_write(*inputs, pool, slots, **rest, writes_q=settings["writes_q"])
    expected_q, _ = reference.norm_rope_write(*inputs, expected_pool, slots, **rest)

    assert (arrivals[:-1] == 0).all()
    if settings["writes_q"]:
        assert relative_error(q_out[:-1], expected_q[:-1]) < (1e-6 if dtype == torch.float32 else 1e-3)
    else:
        assert q_out is q
    written = torch.zeros((blocks, block_size), dtype=torch.bool)
    written.view(-1)[slots[:-1].long()] = True
    # [blocks, block_size, layers, 2, kv heads, head_dim]
    got, wanted, untouched = (x.permute(0, 4, 1, 2, 3, 5) for x in (pool, expected_pool, before))
    got_new, wanted_new = got[written][:, 1], wanted[written][:, 1]
    if kv_dtype == torch.uint8:
        # A value within an ulp of a tie may round the other way: then the code is the next one.
        assert (got_new.int() - wanted_new.int()).abs().max() <= 1
        assert (got_new != wanted_new).float().mean() < 0.01
    else:
        assert relative_error(got_new, wanted_new) < {torch.float32: 1e-6, torch.float16: 1e-3}.get(kv_dtype, 1e-2)
    for part, original in ((got[~written], untouched[~written]), (got[written][:, 0], untouched[written][:, 0])):
        assert torch.equal(part.contiguous().view(torch.uint8), original.contiguous().view(torch.uint8))


def test_e4m3_rounds_and_saturates_as_torch_does() -> None:
    halves = torch.arange(0x7F, dtype=torch.uint8).view(torch.float8_e4m3fn).float()
    ties = (halves[1:] + halves[:-1]) / 2
    edges = torch.cat((halves, ties, torch.nextafter(ties, halves[1:]), torch.nextafter(ties, halves[:-1])))
    edges = torch.cat((edges, torch.tensor([449.0, 464.0, 500.0, 1e30, torch.inf, 2**-10, 2**-11, 1e-30])))
    values = torch.cat((edges, -edges, torch.tensor([torch.nan])))
    values = torch.cat((values, torch.zeros(-len(values) % 32))).view(-1, 1, 32)
    pool = torch.zeros((len(values), 1, 2, 1, 1, 32), dtype=torch.uint8)
    slots = torch.arange(len(values), dtype=torch.int32)
    norm_rope_write(
        values, values, values, None, None, None, None, pool, slots, layer=0, eps=0.0, weight_offset=0.0,
        interleaved=False, k_scale=1.0, v_scale=1.0, writes_q=False,
    )  # fmt: skip
    expected = reference.stored(values, torch.uint8)
    assert torch.equal(pool[:, 0, 0, :, 0], expected)
    assert torch.equal(pool[:, 0, 1, :, 0], expected)

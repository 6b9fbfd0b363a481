"""Where the step's tokens go in the cache, and what goes there: QK-norm, rotary embedding and the write, in one kernel.

A program takes HEADS heads of one token, all of them queries, or keys, or values. A token of no sequence has slot -1:
its programs end at once.
"""

import torch
import triton
from torch import Tensor
from triton import language as tl

from pllm.kernels.cuda.launch import Integer, launch, power_of_two
from pllm.kernels.cuda.numerics import narrow

__all__ = ["norm_rope_write", "norm_rope_write_kernel", "token_slots", "token_slots_kernel"]


@triton.jit
def token_slots_kernel(
    block_table,
    query_start,
    context_len,
    slots,
    num_sequences,
    num_tokens,
    table_stride,
    BLOCK_SIZE: tl.constexpr,
    BATCH: tl.constexpr,
    BLOCK_T: tl.constexpr,
):
    token = tl.program_id(0) * BLOCK_T + tl.arange(0, BLOCK_T)
    sequence = tl.arange(0, BATCH)
    ends = tl.load(query_start + sequence + 1, mask=sequence < num_sequences, other=2147483647)
    b = tl.sum((ends[None, :] <= token[:, None]).to(tl.int32), 1)
    is_token = (token < num_tokens) & (b < num_sequences)
    end = tl.load(query_start + b + 1, mask=is_token, other=0)
    position = tl.load(context_len + b, mask=is_token, other=0) - (end - token)
    block = tl.load(block_table + b.to(tl.int64) * table_stride + position // BLOCK_SIZE, mask=is_token, other=0)
    slot = tl.where(is_token, block * BLOCK_SIZE + position % BLOCK_SIZE, -1)
    tl.store(slots + token, slot, mask=token < num_tokens)


def token_slots(
    block_table: Tensor,
    query_start: Tensor,
    context_len: Tensor,
    tokens: Integer,
    block_size: int,
    *,
    max_sequences: int,
) -> Tensor:
    """The slot in the cache of each of the step's tokens: block id * block_size + offset, or -1 for one of no sequence.

    block_table: int32 [B, W]; query_start: int32 [B + 1]; context_len: int32 [B]. Returns int32 [tokens]. Once a step:
    all layers share it.
    """
    slots = torch.empty((tokens,), dtype=torch.int32, device=block_table.device)
    block_t = 32
    launch(
        token_slots_kernel,
        ((tokens + block_t - 1) // block_t,),
        block_table,
        query_start,
        context_len,
        slots,
        context_len.shape[0],
        tokens,
        block_table.stride(0),
        BLOCK_SIZE=block_size,
        BATCH=power_of_two(max_sequences),
        BLOCK_T=block_t,
        num_warps=4,
    )
    return slots


@triton.jit
def _normed_and_turned(
    at,
    other_at,
    is_element,
    d,
    weight,
    cos,
    sin,
    angle_at,
    eps,
    weight_offset,
    HEAD_DIM: tl.constexpr,
    ROTARY_DIM: tl.constexpr,
    INTERLEAVED: tl.constexpr,
    HAS_NORM: tl.constexpr,
):
    """Rows of heads, float32: divided by their root mean square, weighted, and their first ROTARY_DIM elements turned.

    other_at: where the element that makes a pair with each element lies (its own place, where there is none).
    """
    half: tl.constexpr = ROTARY_DIM // 2
    x = tl.load(at, mask=is_element, other=0).to(tl.float32)
    is_d = d < HEAD_DIM
    if INTERLEAVED:
        pair = d ^ 1
        angle = d // 2
        is_second = d % 2 == 1
    else:
        pair = tl.where(d < half, d + half, d - half)
        angle = tl.where(d < half, d, d - half)
        is_second = d >= half
    turns = d < ROTARY_DIM
    y = x
    if HAS_NORM:
        inverse = 1 / tl.sqrt(tl.sum(x * x, 1) / HEAD_DIM + eps)
        w = tl.load(weight + d, mask=is_d, other=0).to(tl.float32) + weight_offset
        y = x * inverse[:, None] * w[None, :]
    if ROTARY_DIM > 0:
        other = tl.load(other_at, mask=is_element & turns[None, :], other=0).to(tl.float32)
        if HAS_NORM:
            w = tl.load(weight + pair, mask=turns, other=0).to(tl.float32) + weight_offset
            other = other * inverse[:, None] * w[None, :]
        cosine = tl.load(cos + angle_at + angle, mask=turns, other=1).to(tl.float32)
        sine = tl.load(sin + angle_at + angle, mask=turns, other=0).to(tl.float32)
        y = y * cosine[None, :] + tl.where(is_second, sine, -sine)[None, :] * other
    return y


@triton.jit
def norm_rope_write_kernel(
    q,
    k,
    v,
    cos,
    sin,
    q_weight,
    k_weight,
    kv,
    slots,
    q_out,
    arrivals,
    q_token_stride,
    q_head_stride,
    k_token_stride,
    k_head_stride,
    v_token_stride,
    v_head_stride,
    angle_stride,
    block_stride,
    layer,
    eps,
    weight_offset,
    k_inverse_scale,
    v_inverse_scale,
    Q_HEADS: tl.constexpr,
    KV_HEADS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    ROTARY_DIM: tl.constexpr,
    INTERLEAVED: tl.constexpr,
    HAS_NORM: tl.constexpr,
    COUNTERS: tl.constexpr,
    HEADS: tl.constexpr,
):
    """Grid: (tokens, tiles of HEADS query heads, then key heads, then value heads). Q_HEADS 0: no queries."""
    token = tl.program_id(0).to(tl.int64)
    tile = tl.program_id(1)
    # A program passes its floats as float64; nothing here may be computed in it.
    eps, weight_offset = tl.cast(eps, tl.float32), tl.cast(weight_offset, tl.float32)
    k_inverse_scale, v_inverse_scale = tl.cast(k_inverse_scale, tl.float32), tl.cast(v_inverse_scale, tl.float32)
    q_tiles: tl.constexpr = (Q_HEADS + HEADS - 1) // HEADS
    kv_tiles: tl.constexpr = (KV_HEADS + HEADS - 1) // HEADS
    slot = tl.load(slots + token)
    if slot >= 0:
        d = tl.arange(0, BLOCK_D)
        if INTERLEAVED:
            pair = d ^ 1
        else:
            pair = tl.where(d < ROTARY_DIM // 2, d + ROTARY_DIM // 2, d - ROTARY_DIM // 2)
        pair = tl.where(d < ROTARY_DIM, pair, d)
        block = (slot // BLOCK_SIZE).to(tl.int64)
        cache = (
            kv + block * block_stride + (layer * 2 * KV_HEADS * BLOCK_SIZE + slot % BLOCK_SIZE).to(tl.int64) * HEAD_DIM
        )
        if tile == 0:
            counter = tl.arange(0, COUNTERS)
            tl.store(arrivals + token * KV_HEADS + counter, tl.zeros([COUNTERS], tl.int32), mask=counter < KV_HEADS)
        if tile < q_tiles:
            if Q_HEADS > 0:
                head = tile * HEADS + tl.arange(0, HEADS)
                is_element = (head < Q_HEADS)[:, None] & (d < HEAD_DIM)[None, :]
                q_at = q + token * q_token_stride + head[:, None] * q_head_stride
                y = _normed_and_turned(
                    q_at + d[None, :], q_at + pair[None, :], is_element, d, q_weight, cos, sin, token * angle_stride,
                    eps, weight_offset, HEAD_DIM, ROTARY_DIM, INTERLEAVED, HAS_NORM,
                )  # fmt: skip
                turned_at = q_out + (token * Q_HEADS + head[:, None]) * HEAD_DIM + d[None, :]
                tl.store(turned_at, y.to(q_out.dtype.element_ty), mask=is_element)
        elif tile < q_tiles + kv_tiles:
            kv_head = (tile - q_tiles) * HEADS + tl.arange(0, HEADS)
            is_entry = (kv_head < KV_HEADS)[:, None] & (d < HEAD_DIM)[None, :]
            k_at = k + token * k_token_stride + kv_head[:, None] * k_head_stride
            key = _normed_and_turned(
                k_at + d[None, :], k_at + pair[None, :], is_entry, d, k_weight, cos, sin, token * angle_stride,
                eps, weight_offset, HEAD_DIM, ROTARY_DIM, INTERLEAVED, HAS_NORM,
            )  # fmt: skip
            key_at = cache + kv_head[:, None] * (BLOCK_SIZE * HEAD_DIM) + d[None, :]
            tl.store(key_at, narrow(key * k_inverse_scale, kv), mask=is_entry)
        else:
            kv_head = (tile - q_tiles - kv_tiles) * HEADS + tl.arange(0, HEADS)
            is_entry = (kv_head < KV_HEADS)[:, None] & (d < HEAD_DIM)[None, :]
            v_at = v + token * v_token_stride + kv_head[:, None] * v_head_stride
            value = tl.load(v_at + d[None, :], mask=is_entry, other=0).to(tl.float32)
            value_at = cache + (KV_HEADS + kv_head[:, None]) * (BLOCK_SIZE * HEAD_DIM) + d[None, :]
            tl.store(value_at, narrow(value * v_inverse_scale, kv), mask=is_entry)


def norm_rope_write(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cos: Tensor | None,
    sin: Tensor | None,
    q_weight: Tensor | None,
    k_weight: Tensor | None,
    kv: Tensor,
    slots: Tensor,
    *,
    layer: int,
    eps: float,
    weight_offset: float,
    interleaved: bool,
    k_scale: float,
    v_scale: float,
    writes_q: bool = True,
) -> tuple[Tensor, Tensor]:
    """Queries as attention takes them, keys and values into the pool.

    q: [T, H, D]; k, v: [T, Hkv, D]; strided over tokens and heads. cos, sin: [T, R / 2], one value a pair, strided over
    tokens, or none; R <= D, the elements past R are not turned. interleaved: pairs are (0, 1), (2, 3), ... (GLM), not
    (0, R / 2), (1, R / 2 + 1), ... (Llama). q_weight, k_weight: [D], both or none: heads are divided by their root mean
    square (eps within) and multiplied by weight + weight_offset. Arithmetic is float32, rounded once.
    kv: the pool, changed in place; it holds keys over k_scale and values over v_scale. slots: of `token_slots`.
    Returns the queries, [T, H, D] in q's dtype (without `writes_q`: q itself, unturned), and int32 [T, Hkv], zero for
    the tokens with a slot: decode attention counts in it. Other rows are left as they are.
    """
    tokens, heads, head_dim = q.shape
    kv_heads, block_size = kv.shape[3], kv.shape[4]
    rotary = 0 if cos is None else 2 * cos.shape[1]
    q_out = torch.empty((tokens, heads, head_dim), dtype=q.dtype, device=q.device) if writes_q else q
    arrivals = torch.empty((tokens, kv_heads), dtype=torch.int32, device=q.device)
    per_program = 2
    tiles = 2 * -(-kv_heads // per_program) + (-(-heads // per_program) if writes_q else 0)
    launch(
        norm_rope_write_kernel,
        (tokens, tiles),
        q,
        k,
        v,
        cos,
        sin,
        q_weight,
        k_weight,
        kv,
        slots,
        q_out if writes_q else None,
        arrivals,
        q.stride(0),
        q.stride(1),
        k.stride(0),
        k.stride(1),
        v.stride(0),
        v.stride(1),
        0 if cos is None else cos.stride(0),
        kv.stride(0),
        layer,
        eps,
        weight_offset,
        1 / k_scale,
        1 / v_scale,
        Q_HEADS=heads if writes_q else 0,
        KV_HEADS=kv_heads,
        HEAD_DIM=head_dim,
        BLOCK_D=power_of_two(head_dim),
        BLOCK_SIZE=block_size,
        ROTARY_DIM=rotary,
        INTERLEAVED=interleaved,
        HAS_NORM=q_weight is not None,
        COUNTERS=power_of_two(kv_heads),
        HEADS=per_program,
        num_warps=1 if head_dim <= 128 else 2,
    )
    return q_out, arrivals

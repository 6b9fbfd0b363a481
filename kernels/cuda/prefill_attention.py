"""Paged attention for sequences with several new tokens: causal, over the prefix in the cache and the new keys alike.

A tile is BLOCK_M rows: the GROUP query heads of a KV head, for BLOCK_M // GROUP tokens of one sequence, token by token.
The grid covers the most tiles that any division of T tokens over B sequences could have; a program finds its sequence
on the device, and one past the last tile ends at once. Late tiles of a sequence see the most keys and come first. The
keys that all rows of a tile see are attended to without a mask.
"""

import triton
from torch import Tensor
from triton import language as tl

from pllm.kernels.cuda.configurations import PrefillConfiguration
from pllm.kernels.cuda.launch import launch, power_of_two
from pllm.kernels.cuda.numerics import product, tanh, widen

__all__ = ["prefill_attention", "prefill_attention_kernel"]


@triton.jit
def _attend(
    query,
    position,
    highest,
    total,
    numerator,
    first_tile,
    last_tile,
    first_key,
    cache,
    table,
    half,
    block_stride,
    scale,
    window,
    softcap,
    HEAD_DIM: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    BLOCK_N: tl.constexpr,
    HAS_SOFTCAP: tl.constexpr,
    MASKED: tl.constexpr,
):
    """Over the key tiles [first_tile, last_tile): the softmax's running parts. Not MASKED: every row sees every key."""
    d = tl.arange(0, BLOCK_D)
    is_d = d < HEAD_DIM
    last_key = tl.max(position, 0)
    for tile in range(first_tile, last_tile):
        key = tile * BLOCK_N + tl.arange(0, BLOCK_N)
        is_key = (key >= first_key) & (key <= last_key)  # the others may have no block
        if BLOCK_SIZE % BLOCK_N == 0:  # the tile lies in one block
            block = tl.load(table + tile * BLOCK_N // BLOCK_SIZE).to(tl.int64)
        elif MASKED:
            block = tl.load(table + key // BLOCK_SIZE, mask=is_key, other=0).to(tl.int64)
        else:
            block = tl.load(table + key // BLOCK_SIZE).to(tl.int64)
        offset = block * block_stride + (key % BLOCK_SIZE) * HEAD_DIM
        k_at = cache + offset[None, :] + d[:, None]
        v_at = cache + half + offset[:, None] + d[None, :]
        if MASKED:
            k = tl.load(k_at, mask=is_key[None, :] & is_d[:, None], other=0.0)
            v = tl.load(v_at, mask=is_key[:, None] & is_d[None, :], other=0.0)
        elif HEAD_DIM == BLOCK_D:
            k = tl.load(k_at)
            v = tl.load(v_at)
        else:
            k = tl.load(k_at, mask=is_d[:, None], other=0.0)
            v = tl.load(v_at, mask=is_d[None, :], other=0.0)
        logits = product(query, widen(k, query)) * scale
        if HAS_SOFTCAP:
            logits = softcap * tanh(logits / softcap)
        logits *= 1.4426950408889634  # to base 2
        if MASKED:
            hidden = key[None, :] > position[:, None]
            hidden = hidden | ((window > 0) & (key[None, :] <= position[:, None] - window))
            logits = tl.where(hidden, float("-inf"), logits)
            top = tl.maximum(highest, tl.max(logits, 1))
            finite = tl.where(top == float("-inf"), 0.0, top)  # a row that has seen no key yet
        else:
            top = tl.maximum(highest, tl.max(logits, 1))
            finite = top
        weights = tl.exp2(logits - finite[:, None])
        rescale = tl.exp2(highest - finite)
        total = total * rescale + tl.sum(weights, 1)
        numerator = numerator * rescale[:, None] + product(weights.to(query.dtype), widen(v, query))
        highest = top
    return highest, total, numerator


@triton.jit
def prefill_attention_kernel(
    q,
    kv,
    block_table,
    query_start,
    context_len,
    sinks,
    out,
    num_sequences,
    table_stride,
    q_token_stride,
    q_head_stride,
    block_stride,
    layer,
    scale,
    v_scale,
    window,
    softcap,
    least_tokens,
    GROUP: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    BATCH: tl.constexpr,
    HAS_SINKS: tl.constexpr,
    HAS_SOFTCAP: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """Grid: (tiles, KV heads). Sequences with fewer than `least_tokens` new tokens are left out."""
    tile_index = tl.program_id(0)
    kv_head = tl.program_id(1)
    kv_heads = tl.num_programs(1)
    tokens_per_tile: tl.constexpr = BLOCK_M // GROUP
    # A program passes its floats as float64; nothing here may be computed in it.
    scale, v_scale, softcap = tl.cast(scale, tl.float32), tl.cast(v_scale, tl.float32), tl.cast(softcap, tl.float32)

    sequence = tl.arange(0, BATCH)
    is_sequence = sequence < num_sequences
    begins = tl.load(query_start + sequence, mask=is_sequence, other=0)
    new_tokens = tl.load(query_start + sequence + 1, mask=is_sequence, other=0) - begins
    new_tokens = tl.where(new_tokens < least_tokens, 0, new_tokens)
    tiles = (new_tokens + tokens_per_tile - 1) // tokens_per_tile
    line_ends = tl.cumsum(tiles, 0)
    if tile_index < tl.sum(tiles, 0):
        b = tl.sum((line_ends <= tile_index).to(tl.int32), 0)
        begin = tl.load(query_start + b)
        count = tl.load(query_start + b + 1) - begin
        context = tl.load(context_len + b)
        tile = tl.sum(tl.where(sequence == b, line_ends, 0), 0) - 1 - tile_index

        row = tl.arange(0, BLOCK_M)
        d = tl.arange(0, BLOCK_D)
        new = tile * tokens_per_tile + row // GROUP
        is_row = (row < tokens_per_tile * GROUP) & (new < count)
        # Rows of no token repeat the last: they see what others see, and are not stored.
        new = tl.minimum(new, count - 1)
        head = kv_head * GROUP + row % GROUP
        position = context - count + new
        token = (begin + new).to(tl.int64)
        is_element = is_row[:, None] & (d < HEAD_DIM)[None, :]
        query = tl.load(
            q + token[:, None] * q_token_stride + head[:, None] * q_head_stride + d[None, :], mask=is_element, other=0
        )
        cache = kv + (layer * 2 * kv_heads + kv_head).to(tl.int64) * BLOCK_SIZE * HEAD_DIM
        half = kv_heads * BLOCK_SIZE * HEAD_DIM  # from a key to its value
        table = block_table + b.to(tl.int64) * table_stride

        first_position = context - count + tile * tokens_per_tile
        last_position = tl.minimum(first_position + tokens_per_tile, context) - 1
        first_key = tl.where(window > 0, tl.maximum(first_position - window + 1, 0), 0)
        first = first_key // BLOCK_N
        whole = tl.where(window > 0, first, (first_position + 1) // BLOCK_N)
        last = last_position // BLOCK_N + 1
        highest = tl.full([BLOCK_M], float("-inf"), tl.float32)
        total = tl.zeros([BLOCK_M], tl.float32)
        numerator = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
        highest, total, numerator = _attend(
            query, position, highest, total, numerator, first, whole, first_key, cache, table, half, block_stride,
            scale, window, softcap, HEAD_DIM, BLOCK_D, BLOCK_SIZE, BLOCK_N, HAS_SOFTCAP, False,
        )  # fmt: skip
        highest, total, numerator = _attend(
            query, position, highest, total, numerator, whole, last, first_key, cache, table, half, block_stride,
            scale, window, softcap, HEAD_DIM, BLOCK_D, BLOCK_SIZE, BLOCK_N, HAS_SOFTCAP, True,
        )  # fmt: skip
        if HAS_SINKS:
            sink = tl.load(sinks + head).to(tl.float32) * 1.4426950408889634
            top = tl.maximum(highest, sink)
            rescale = tl.exp2(highest - top)
            numerator = numerator * rescale[:, None]
            total = total * rescale + tl.exp2(sink - top)
        attended = numerator / total[:, None] * v_scale
        result = out + (token * kv_heads * GROUP + head)[:, None] * HEAD_DIM + d[None, :]
        tl.store(result, attended.to(out.dtype.element_ty), mask=is_element)


def prefill_attention(
    q: Tensor,
    kv: Tensor,
    block_table: Tensor,
    query_start: Tensor,
    context_len: Tensor,
    sinks: Tensor | None,
    out: Tensor,
    *,
    layer: int,
    scale: float,
    sliding_window: int,
    softcap: float,
    k_scale: float,
    v_scale: float,
    least_tokens: int,
    max_sequences: int,
    configuration: PrefillConfiguration,
) -> None:
    """Attend for every sequence with `least_tokens` new tokens or more, whose keys and values are in the cache already.

    As `decode_attention`, which takes the sequences with one new token; there may be prefixes of any length in the
    cache. T, the rows of q, bounds the grid.
    """
    heads, head_dim = q.shape[1], q.shape[2]
    kv_heads, block_size = kv.shape[3], kv.shape[4]
    group = heads // kv_heads
    block_m = max(configuration.block_m, power_of_two(group))
    launch(
        prefill_attention_kernel,
        (q.shape[0] // (block_m // group) + context_len.shape[0], kv_heads),
        q,
        kv,
        block_table,
        query_start,
        context_len,
        sinks,
        out,
        context_len.shape[0],
        block_table.stride(0),
        q.stride(0),
        q.stride(1),
        kv.stride(0),
        layer,
        scale * k_scale,
        v_scale,
        sliding_window,
        softcap,
        least_tokens,
        GROUP=group,
        HEAD_DIM=head_dim,
        BLOCK_D=max(16, power_of_two(head_dim)),
        BLOCK_SIZE=block_size,
        BATCH=power_of_two(max_sequences),
        HAS_SINKS=sinks is not None,
        HAS_SOFTCAP=softcap > 0,
        BLOCK_M=block_m,
        BLOCK_N=configuration.block_n,
        num_warps=configuration.num_warps,
        num_stages=configuration.num_stages,
    )

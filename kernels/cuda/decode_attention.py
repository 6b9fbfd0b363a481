"""Paged attention for sequences with one new token: all KV heads' tiles shared out equally over a fixed grid.

The query heads of a KV head are packed into one tile, padded to 16 rows for the matrix unit. The keys of all sequences,
cut into tiles of BLOCK_N and laid end to end, are divided on the device into equal shares, one a program (split-KV as
in Flash-Decoding; equal shares as in Stream-K, arXiv 2301.03598). So one long sequence spreads over the device, many
short ones pack together, and the grid, which a CUDA graph fixes, depends on neither.

    tiles of    a a a a a a a a a b b c c c d d d d d d d
    shares      '-----------' '-----------' '-----------'
    partial     a (slot 0)    a (slot 0),   d (slot 0)
                              d (slot 1)                    b and c are whole: written at once

A program has at most two partial rows: the first, begun by others, and the last, not finished. The program that arrives
last at a row adds its partials up, in the order of the shares: the same bits every time. So no second kernel runs,
and a batch whose rows are whole pays for none.
"""

import torch
import triton
from torch import Tensor
from triton import language as tl

from pllm.kernels.cuda.configurations import DecodeConfiguration
from pllm.kernels.cuda.launch import launch, power_of_two
from pllm.kernels.cuda.numerics import product, tanh, widen

__all__ = ["decode_attention", "decode_attention_kernel"]


@triton.jit
def _finished(numerator, highest, total, sinks, head, is_head, HAS_SINKS: tl.constexpr):
    """The attention of rows from their softmax's parts; `highest` in base 2."""
    if HAS_SINKS:
        sink = tl.load(sinks + head, mask=is_head, other=0).to(tl.float32) * 1.4426950408889634
        top = tl.maximum(highest, sink)
        rescale = tl.exp2(highest - top)
        numerator = numerator * rescale[:, None]
        total = total * rescale + tl.exp2(sink - top)
    return numerator / total[:, None]


@triton.jit
def decode_attention_kernel(
    q,
    kv,
    block_table,
    query_start,
    context_len,
    sinks,
    arrivals,
    partials,
    statistics,
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
    GROUP: tl.constexpr,
    ROWS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    BATCH: tl.constexpr,
    HAS_SINKS: tl.constexpr,
    HAS_SOFTCAP: tl.constexpr,
    BLOCK_N: tl.constexpr,
    MIN_TILES: tl.constexpr,
):
    """Grid: (shares, KV heads). BATCH: a power of two, num_sequences at most. ROWS: 16 or more, GROUP at most."""
    share_index = tl.program_id(0)
    kv_head = tl.program_id(1)
    kv_heads = tl.num_programs(1)
    log2e = 1.4426950408889634
    # A program passes its floats as float64; nothing here may be computed in it.
    scale, v_scale, softcap = tl.cast(scale, tl.float32), tl.cast(v_scale, tl.float32), tl.cast(softcap, tl.float32)

    # Every program works out the same division: the tiles of each sequence, and where they end in the line of all.
    sequence = tl.arange(0, BATCH)
    is_sequence = sequence < num_sequences
    begins = tl.load(query_start + sequence, mask=is_sequence, other=0)
    ends = tl.load(query_start + sequence + 1, mask=is_sequence, other=0)
    contexts = tl.load(context_len + sequence, mask=is_sequence, other=0)
    contexts = tl.where(ends - begins == 1, contexts, 0)
    first_keys = tl.where(window > 0, tl.maximum(contexts - window, 0), 0)
    tiles = (contexts + BLOCK_N - 1) // BLOCK_N - first_keys // BLOCK_N
    line_ends = tl.cumsum(tiles, 0)
    line = tl.sum(tiles, 0)
    share = tl.maximum(tl.cdiv(line, tl.num_programs(0)), MIN_TILES)
    at = share_index * share
    share_end = tl.minimum(at + share, line)

    row = tl.arange(0, ROWS)
    d = tl.arange(0, BLOCK_D)
    is_d = d < HEAD_DIM
    is_row = row < GROUP
    head = kv_head * GROUP + row
    is_element = is_row[:, None] & is_d[None, :]
    element = row[:, None] * HEAD_DIM + d[None, :]
    half = kv_heads * BLOCK_SIZE * HEAD_DIM  # from a key to its value
    cache = kv + (layer * 2 * kv_heads + kv_head).to(tl.int64) * BLOCK_SIZE * HEAD_DIM

    while at < share_end:
        b = tl.sum((line_ends <= at).to(tl.int32), 0)
        row_end = tl.sum(tl.where(sequence == b, line_ends, 0), 0)
        row_begin = row_end - tl.sum(tl.where(sequence == b, tiles, 0), 0)
        context = tl.sum(tl.where(sequence == b, contexts, 0), 0)
        first_key = tl.sum(tl.where(sequence == b, first_keys, 0), 0)
        token = tl.sum(tl.where(sequence == b, begins, 0), 0)
        stop = tl.minimum(row_end, share_end)
        table = block_table + b.to(tl.int64) * table_stride
        query = tl.load(
            q + token.to(tl.int64) * q_token_stride + head[:, None] * q_head_stride + d[None, :],
            mask=is_element,
            other=0,
        )

        highest = tl.full([ROWS], float("-inf"), tl.float32)
        total = tl.zeros([ROWS], tl.float32)
        numerator = tl.zeros([ROWS, BLOCK_D], tl.float32)
        first_tile = first_key // BLOCK_N - row_begin
        for tile in range(first_tile + at, first_tile + stop):
            key = tile * BLOCK_N + tl.arange(0, BLOCK_N)
            is_key = (key < context) & (key >= first_key)
            if BLOCK_SIZE % BLOCK_N == 0:  # the tile lies in one block
                block = tl.load(table + tile * BLOCK_N // BLOCK_SIZE).to(tl.int64)
                offset = block * block_stride + (key % BLOCK_SIZE) * HEAD_DIM
            else:
                block = tl.load(table + key // BLOCK_SIZE, mask=is_key, other=0).to(tl.int64)
                offset = block * block_stride + (key % BLOCK_SIZE) * HEAD_DIM
            k = tl.load(cache + offset[None, :] + d[:, None], mask=is_key[None, :] & is_d[:, None], other=0.0)
            logits = product(query, widen(k, query)) * scale
            if HAS_SOFTCAP:
                logits = softcap * tanh(logits / softcap)
            logits = tl.where(is_key[None, :], logits * log2e, float("-inf"))
            # Every tile holds a key that is seen: `top` is never -inf.
            top = tl.maximum(highest, tl.max(logits, 1))
            weights = tl.exp2(logits - top[:, None])
            rescale = tl.exp2(highest - top)
            total = total * rescale + tl.sum(weights, 1)
            highest = top
            v = tl.load(cache + half + offset[:, None] + d[None, :], mask=is_key[:, None] & is_d[None, :], other=0.0)
            numerator = numerator * rescale[:, None] + product(weights.to(query.dtype), widen(v, query))

        first_share = row_begin // share
        last_share = (row_end - 1) // share
        result = out + (token.to(tl.int64) * kv_heads + kv_head) * GROUP * HEAD_DIM + element
        if first_share == last_share:
            attended = _finished(numerator, highest, total, sinks, head, is_row, HAS_SINKS) * v_scale
            tl.store(result, attended.to(out.dtype.element_ty), mask=is_element)
        else:
            slot = (share_index * 2 + (row_begin > share_index * share).to(tl.int32)) * kv_heads + kv_head
            tl.store(partials + slot.to(tl.int64) * GROUP * HEAD_DIM + element, numerator, mask=is_element)
            tl.store(statistics + slot * 2 * GROUP + row, highest, mask=is_row)
            tl.store(statistics + slot * 2 * GROUP + GROUP + row, total, mask=is_row)
            # The barrier orders every thread's stores before the one thread's release.
            tl.debug_barrier()
            arrived = tl.atomic_add(arrivals + token * kv_heads + kv_head, 1, sem="acq_rel", scope="gpu")
            if arrived == last_share - first_share:
                tl.debug_barrier()
                highest = tl.full([ROWS], float("-inf"), tl.float32)
                total = tl.zeros([ROWS], tl.float32)
                numerator = tl.zeros([ROWS, BLOCK_D], tl.float32)
                for other in range(first_share, last_share + 1):
                    slot = (other * 2 + (row_begin > other * share).to(tl.int32)) * kv_heads + kv_head
                    # Past the first-level cache, which may hold what these lines were before.
                    top = tl.load(statistics + slot * 2 * GROUP + row, mask=is_row, other=0, cache_modifier=".cg")
                    part = tl.load(
                        statistics + slot * 2 * GROUP + GROUP + row, mask=is_row, other=1, cache_modifier=".cg"
                    )
                    numbers = tl.load(
                        partials + slot.to(tl.int64) * GROUP * HEAD_DIM + element,
                        mask=is_element,
                        other=0,
                        cache_modifier=".cg",
                    )
                    common = tl.maximum(highest, top)
                    mine = tl.exp2(highest - common)
                    theirs = tl.exp2(top - common)
                    numerator = numerator * mine[:, None] + numbers * theirs[:, None]
                    total = total * mine + part * theirs
                    highest = common
                attended = _finished(numerator, highest, total, sinks, head, is_row, HAS_SINKS) * v_scale
                tl.store(result, attended.to(out.dtype.element_ty), mask=is_element)
        at = stop


def decode_attention(
    q: Tensor,
    kv: Tensor,
    block_table: Tensor,
    query_start: Tensor,
    context_len: Tensor,
    sinks: Tensor | None,
    arrivals: Tensor,
    out: Tensor,
    *,
    layer: int,
    scale: float,
    sliding_window: int,
    softcap: float,
    k_scale: float,
    v_scale: float,
    max_sequences: int,
    configuration: DecodeConfiguration,
) -> None:
    """Attend for every sequence with exactly one new token, whose key and value are in the cache already.

    q: [T, H, D], strided over tokens and heads. kv: the pool [blocks, layers, 2, Hkv, block_size, D], contiguous; keys
    and values count k_scale and v_scale times what it holds; uint8 stands for float8_e4m3fn. block_table: int32 [B, W].
    query_start: int32 [B + 1]. context_len: int32 [B], B <= max_sequences. sinks: [H] or none.
    arrivals: int32 [T, Hkv], zero at the rows attended for; counted up here.
    out: [T, H, D], contiguous: rows of other sequences, and rows of no sequence, are left as they are.
    """
    heads, head_dim = q.shape[1], q.shape[2]
    kv_heads, block_size = kv.shape[3], kv.shape[4]
    group = heads // kv_heads
    shares = max(1, configuration.programs // kv_heads)
    partials = torch.empty((shares, 2, kv_heads, group, head_dim), dtype=torch.float32, device=q.device)
    statistics = torch.empty((shares, 2, kv_heads, 2, group), dtype=torch.float32, device=q.device)
    launch(
        decode_attention_kernel,
        (shares, kv_heads),
        q,
        kv,
        block_table,
        query_start,
        context_len,
        sinks,
        arrivals,
        partials,
        statistics,
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
        GROUP=group,
        ROWS=max(16, power_of_two(group)),
        HEAD_DIM=head_dim,
        BLOCK_D=max(16, power_of_two(head_dim)),
        BLOCK_SIZE=block_size,
        BATCH=power_of_two(max_sequences),
        HAS_SINKS=sinks is not None,
        HAS_SOFTCAP=softcap > 0,
        BLOCK_N=configuration.block_n,
        MIN_TILES=configuration.min_tiles,
        num_warps=configuration.num_warps,
        num_stages=configuration.num_stages,
    )

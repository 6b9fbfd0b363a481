"""Penalties of repetition, on the device, and the history that they read.

A sequence that asks for them has a row of `history`, int32 [slots, V]: twice the times that it said a token, plus one
where its prompt holds it. Sequences that ask for none have slot -1 and cost nothing.
"""

import triton
from torch import Tensor
from triton import language as tl

from pllm.kernels.cuda.launch import launch, power_of_two

__all__ = ["penalize", "penalize_kernel", "record", "record_kernel"]


@triton.jit
def penalize_kernel(
    logits,
    history,
    slots,
    repetition,
    frequency,
    presence,
    size,
    row_stride,
    BLOCK: tl.constexpr,
):
    """Grid: (rows, blocks of the vocabulary)."""
    row = tl.program_id(0).to(tl.int64)
    slot = tl.load(slots + row).to(tl.int64)
    if slot >= 0:
        token = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
        is_token = token < size
        said = tl.load(history + slot * size + token, mask=is_token, other=0)
        x = tl.load(logits + row * row_stride + token, mask=is_token, other=0).to(tl.float32)
        penalty = tl.load(repetition + row)
        repeated = tl.minimum(tl.where(x > 0, x / penalty, x * penalty), 1e30)
        y = tl.where(said > 0, repeated, x)
        count = (said >> 1).to(tl.float32)
        y -= tl.load(frequency + row) * count + tl.where(count > 0, tl.load(presence + row), 0.0)
        tl.store(logits + row * row_stride + token, y.to(logits.dtype.element_ty), mask=is_token & (said > 0))


def penalize(
    logits: Tensor, history: Tensor, slots: Tensor, repetition: Tensor, frequency: Tensor, presence: Tensor
) -> None:
    """Apply penalties to rows of logits [R, V], in place, as vLLM does: repetition (over prompt and output: positive
    logits are divided, others multiplied, at most 1e30), then frequency (times the times said) and presence (once).

    history: int32 [slots, V]; slots: int32 [R]; repetition (1: none), frequency, presence (0: none): float32 [R].
    """
    rows, size = logits.shape
    block = 2048
    launch(
        penalize_kernel,
        (rows, -(-size // block)),
        logits,
        history,
        slots,
        repetition,
        frequency,
        presence,
        size,
        logits.stride(0),
        BLOCK=block,
        num_warps=4,
    )


@triton.jit
def record_kernel(history, slots, tokens, num_rows, size, BLOCK: tl.constexpr):
    """Grid: (1,)."""
    row = tl.arange(0, BLOCK)
    is_row = row < num_rows
    slot = tl.load(slots + row, mask=is_row, other=-1).to(tl.int64)
    token = tl.load(tokens + row, mask=is_row, other=-1)
    tl.atomic_add(history + slot * size + token, 2, mask=is_row & (slot >= 0) & (token >= 0), sem="relaxed")


def record(history: Tensor, slots: Tensor, tokens: Tensor, *, max_rows: int) -> None:
    """Count the tokens drawn, int64 [R] (below 0: none was), in `history`. slots: int32 [R], R <= max_rows."""
    launch(
        record_kernel,
        (1,),
        history,
        slots,
        tokens,
        tokens.shape[0],
        history.shape[1],
        BLOCK=power_of_two(max_rows),
        num_warps=4,
    )

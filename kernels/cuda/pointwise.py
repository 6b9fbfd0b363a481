"""What runs between the products of a layer when they are the library's: residual + RMSNorm, and SiLU·mul.

Both read each input once and write each output once; arithmetic is float32, rounded once per output.
"""

import torch
import triton
from torch import Tensor
from triton import language as tl

from pllm.kernels.cuda.launch import launch, power_of_two

__all__ = ["add_rms_norm", "add_rms_norm_kernel", "silu_mul", "silu_mul_kernel"]


@triton.jit
def add_rms_norm_kernel(
    x,
    residual,
    weight,
    out,
    sums,
    x_stride,
    residual_stride,
    eps,
    weight_offset,
    SIZE: tl.constexpr,
    BLOCK: tl.constexpr,
    HAS_RESIDUAL: tl.constexpr,
):
    """Grid: (rows,). BLOCK: a power of two, SIZE at most: a row is held in registers."""
    row = tl.program_id(0).to(tl.int64)
    i = tl.arange(0, BLOCK)
    # A program passes its floats as float64; nothing here may be computed in it.
    eps, weight_offset = tl.cast(eps, tl.float32), tl.cast(weight_offset, tl.float32)
    is_element = i < SIZE
    # The weight does not depend on the kernel before: its load is under way while the row's is waited for.
    w = tl.load(weight + i, mask=is_element, other=0).to(tl.float32) + weight_offset
    y = tl.load(x + row * x_stride + i, mask=is_element, other=0).to(tl.float32)
    if HAS_RESIDUAL:
        y += tl.load(residual + row * residual_stride + i, mask=is_element, other=0).to(tl.float32)
        rounded = y.to(sums.dtype.element_ty)
        tl.store(sums + row * SIZE + i, rounded, mask=is_element)
    inverse = 1 / tl.sqrt(tl.sum(y * y, 0) / SIZE + eps)
    tl.store(out + row * SIZE + i, (y * inverse * w).to(out.dtype.element_ty), mask=is_element)


def add_rms_norm(
    x: Tensor, residual: Tensor | None, weight: Tensor, *, eps: float, weight_offset: float
) -> tuple[Tensor, Tensor]:
    """RMSNorm of x + residual, and the sum itself.

    x, residual: [M, N], rows contiguous; without a residual the sum is x. weight: [N]; the row over its root mean
    square (eps within) is multiplied by weight + weight_offset (1 for Gemma). Returns [M, N] twice, in x's dtype; the
    norm is of the sum before it is rounded.
    """
    rows, size = x.shape
    out = torch.empty((rows, size), dtype=x.dtype, device=x.device)
    sums = x if residual is None else torch.empty((rows, size), dtype=x.dtype, device=x.device)
    launch(
        add_rms_norm_kernel,
        (rows,),
        x,
        residual,
        weight,
        out,
        None if residual is None else sums,
        x.stride(0),
        0 if residual is None else residual.stride(0),
        eps,
        weight_offset,
        SIZE=size,
        BLOCK=power_of_two(size),
        HAS_RESIDUAL=residual is not None,
        num_warps=4 if size <= 4096 else 8,
    )
    return out, sums


@triton.jit
def silu_mul_kernel(gate_up, out, row_stride, SIZE: tl.constexpr, BLOCK: tl.constexpr):
    """Grid: (rows, blocks of columns)."""
    row = tl.program_id(0).to(tl.int64)
    i = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    is_element = i < SIZE
    gate = tl.load(gate_up + row * row_stride + i, mask=is_element, other=0).to(tl.float32)
    up = tl.load(gate_up + row * row_stride + SIZE + i, mask=is_element, other=0).to(tl.float32)
    y = gate / (1 + tl.exp(-gate)) * up
    tl.store(out + row * SIZE + i, y.to(out.dtype.element_ty), mask=is_element)


def silu_mul(gate_up: Tensor) -> Tensor:
    """silu(gate) * up of [M, 2 N], rows contiguous, the gate first. Returns [M, N]."""
    rows, size = gate_up.shape[0], gate_up.shape[1] // 2
    out = torch.empty((rows, size), dtype=gate_up.dtype, device=gate_up.device)
    block = 1024
    launch(
        silu_mul_kernel,
        (rows, -(-size // block)),
        gate_up,
        out,
        gate_up.stride(0),
        SIZE=size,
        BLOCK=block,
        num_warps=4,
    )
    return out

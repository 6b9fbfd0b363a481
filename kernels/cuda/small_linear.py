"""Products with up to eight rows, bound by reading the weight once: with the norm before, and what follows, fused in.

The library's products of this size reach a fraction of the bandwidth and need a kernel more for each fusion. Here a
program owns BLOCK_N rows of the weight [N, K] and streams them; x is small and stays in the cache.

The norm before: with x' = x * weight the product is (x' W^T) / rms(x), so the sum of squares is gathered while K runs
and divided by at the end: no pass before the product. In float16 x' could overflow: there the rows are normalised
first, in a pass over x.
"""

import torch
import triton
from torch import Tensor
from triton import language as tl

from pllm.kernels.cuda.configurations import SmallLinearConfiguration
from pllm.kernels.cuda.launch import launch
from pllm.kernels.cuda.numerics import product

__all__ = ["small_linear", "small_linear_kernel"]


@triton.jit
def small_linear_kernel(
    x,
    weight,
    bias,
    norm_weight,
    residual,
    out,
    num_rows,
    x_stride,
    residual_stride,
    eps,
    weight_offset,
    N: tl.constexpr,
    K: tl.constexpr,
    ROWS: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    HAS_NORM: tl.constexpr,
    NORM_FIRST: tl.constexpr,
    HAS_RESIDUAL: tl.constexpr,
    GATED: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    STAGES: tl.constexpr,
):
    """Grid: (blocks of N,). ROWS: 1, where the products are sums of vectors, or 8, where the matrix unit does them.

    GATED: the weight is [2 N, K], the gate's rows first. K is a multiple of BLOCK_K, or masked.
    """
    # A program passes its floats as float64; nothing here may be computed in it.
    eps, weight_offset = tl.cast(eps, tl.float32), tl.cast(weight_offset, tl.float32)
    n = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    is_n = n < N
    k = tl.arange(0, BLOCK_K)
    row = tl.arange(0, ROWS)
    is_row = row < num_rows
    weight_at = weight + n.to(tl.int64)[:, None] * K + k[None, :]
    up_at = weight_at + N * K
    x_at = x + row[None, :] * x_stride + k[:, None]  # [BLOCK_K, ROWS]
    is_whole: tl.constexpr = K % BLOCK_K == 0
    squares = tl.zeros([ROWS], tl.float32)
    if NORM_FIRST:
        for start in range(0, K, BLOCK_K):
            xs = tl.load(x_at + start, mask=is_row[None, :] & (start + k < K)[:, None], other=0).to(tl.float32)
            squares += tl.sum(xs * xs, 0)
        inverse = 1 / tl.sqrt(squares / K + eps)
    if ROWS == 1:
        sums = tl.zeros([BLOCK_N, BLOCK_K], tl.float32)
        up_sums = tl.zeros([BLOCK_N, BLOCK_K], tl.float32)
    else:
        sums = tl.zeros([BLOCK_N, ROWS], tl.float32)
        up_sums = tl.zeros([BLOCK_N, ROWS], tl.float32)
    for start in tl.range(0, K, BLOCK_K, num_stages=STAGES):
        if is_whole:
            w = tl.load(weight_at + start, mask=is_n[:, None], other=0)
        else:
            w = tl.load(weight_at + start, mask=is_n[:, None] & (start + k < K)[None, :], other=0)
        if GATED:
            if is_whole:
                up_w = tl.load(up_at + start, mask=is_n[:, None], other=0)
            else:
                up_w = tl.load(up_at + start, mask=is_n[:, None] & (start + k < K)[None, :], other=0)
        if is_whole:
            xs = tl.load(x_at + start, mask=is_row[None, :], other=0)
        else:
            xs = tl.load(x_at + start, mask=is_row[None, :] & (start + k < K)[:, None], other=0)
        if HAS_NORM:
            wide = xs.to(tl.float32)
            scale = tl.load(norm_weight + start + k, mask=start + k < K, other=0).to(tl.float32) + weight_offset
            if NORM_FIRST:
                wide *= inverse[None, :]
            else:
                squares += tl.sum(wide * wide, 0)
            wide *= scale[:, None]
            if ROWS > 1:
                xs = wide.to(x.dtype.element_ty)
        else:
            wide = xs
        if ROWS == 1:
            line = tl.sum(wide.to(tl.float32), 1)[None, :]  # of one element each
            sums += w.to(tl.float32) * line
            if GATED:
                up_sums += up_w.to(tl.float32) * line
        else:
            sums += product(w, xs)
            if GATED:
                up_sums += product(up_w, xs)
    if ROWS == 1:
        y = tl.sum(sums, 1)[:, None]
        up = tl.sum(up_sums, 1)[:, None]
    else:
        y = sums
        up = up_sums
    if HAS_NORM and not NORM_FIRST:
        inverse = 1 / tl.sqrt(squares / K + eps)
        y *= inverse[None, :]
        up *= inverse[None, :]
    if HAS_BIAS:
        y += tl.load(bias + n, mask=is_n, other=0).to(tl.float32)[:, None]
        if GATED:
            up += tl.load(bias + N + n, mask=is_n, other=0).to(tl.float32)[:, None]
    if GATED:
        y = y / (1 + tl.exp(-y)) * up
    is_element = is_n[:, None] & is_row[None, :]
    if HAS_RESIDUAL:
        y += tl.load(residual + row[None, :] * residual_stride + n[:, None], mask=is_element, other=0).to(tl.float32)
    tl.store(out + row[None, :] * N + n[:, None], y.to(out.dtype.element_ty), mask=is_element)


def small_linear(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    norm_weight: Tensor | None,
    residual: Tensor | None,
    *,
    eps: float,
    weight_offset: float,
    gated: bool,
    max_rows: int,
    configuration: SmallLinearConfiguration,
) -> Tensor:
    """norm(x) W^T + bias, then silu(gate) * up, then + residual: each where asked for.

    x: [M, K], rows contiguous, 1 <= M <= max_rows <= 8. weight: [N, K], or where `gated` [2 N, K], the gate's rows
    first; contiguous. bias: one for each of the weight's rows, or none. norm_weight: [K] or none: x's rows are divided
    by their root mean square (eps within) and multiplied by norm_weight + weight_offset. residual: [M, N] or none.
    Sums in float32; returns [M, N] in x's dtype.
    """
    rows, size = x.shape[0], weight.shape[0] // (2 if gated else 1)
    out = torch.empty((rows, size), dtype=x.dtype, device=x.device)
    launch(
        small_linear_kernel,
        (-(-size // configuration.block_n),),
        x,
        weight,
        bias,
        norm_weight,
        residual,
        out,
        rows,
        x.stride(0),
        0 if residual is None else residual.stride(0),
        eps,
        weight_offset,
        N=size,
        K=weight.shape[1],
        ROWS=1 if max_rows == 1 else 8,
        HAS_BIAS=bias is not None,
        HAS_NORM=norm_weight is not None,
        NORM_FIRST=norm_weight is not None and x.dtype == torch.float16,
        HAS_RESIDUAL=residual is not None,
        GATED=gated,
        BLOCK_N=configuration.block_n,
        BLOCK_K=configuration.block_k,
        STAGES=configuration.num_stages,
        num_warps=configuration.num_warps,
    )
    return out

"""The small product with everything that can be fused into it, and the pointwise kernels, against the specification."""

from typing import Any

import pytest
import torch

from pllm.kernels import reference
from pllm.kernels.cuda.configurations import SmallLinearConfiguration
from pllm.kernels.cuda.pointwise import add_rms_norm, silu_mul
from pllm.kernels.cuda.small_linear import small_linear

from .cases import generators, relative_error


def strided(tensor: torch.Tensor) -> torch.Tensor:
    """The same values in rows that lie further apart, with poison between them."""
    wide = torch.full((tensor.shape[0], tensor.shape[1] + 3), torch.nan, dtype=tensor.dtype)
    wide[:, : tensor.shape[1]] = tensor
    return wide[:, : tensor.shape[1]]


@pytest.mark.parametrize("rows", [1, 2, 3, 8])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"norm": True},
        {"gated": True},
        {"residual": True},
        {"bias": True, "gated": True},
        {"norm": True, "gated": True, "bias": True, "residual": True},
        {"norm": True, "dtype": torch.float16},
        {"n": 37, "k": 100, "norm": True, "gated": True},
    ],
    ids=str,
)
def test_small_linear(rows: int, options: dict[str, Any]) -> None:
    settings = {"n": 48, "k": 128, "dtype": torch.float32, "gated": False, "norm": False, "residual": False}
    settings |= {"bias": False} | options
    g, n, k, dtype = next(generators(1, rows)), settings["n"], settings["k"], settings["dtype"]

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=g).to(dtype)

    width = 2 * n if settings["gated"] else n
    x, weight = strided(normal(rows, k)), normal(width, k)
    if dtype == torch.float16:
        x *= 5000  # times the norm's weight it is beyond float16
    bias, norm_weight, residual = (
        strided(normal(rows, n)) if name == "residual" else normal(width if name == "bias" else k)
        if settings[name] else None
        for name in ("bias", "norm", "residual")
    )  # fmt: skip
    residual = residual if settings["residual"] else None
    norm_weight = None if norm_weight is None else norm_weight.abs() * 9
    rest = {"eps": 1e-5, "weight_offset": 0.5, "gated": settings["gated"]}
    out = small_linear(
        x, weight, bias, norm_weight, residual, **rest, max_rows=8 if rows > 1 else 1,
        configuration=SmallLinearConfiguration(block_n=16, block_k=32, num_warps=1, num_stages=2),
    )  # fmt: skip
    wide = [None if t is None else t.double() for t in (x, weight, bias, norm_weight, residual)]
    expected = reference.small_linear(*wide, **rest)
    assert out.shape == (rows, n)
    assert relative_error(out, expected) < (2e-6 if dtype == torch.float32 else 2e-3)


@pytest.mark.parametrize(("rows", "size"), [(1, 16), (3, 100), (2, 1024)])
@pytest.mark.parametrize("has_residual", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_add_rms_norm(rows: int, size: int, has_residual: bool, dtype: torch.dtype) -> None:
    g = next(generators(1, size))
    x, residual = (strided(torch.randn((rows, size), generator=g).to(dtype)) for _ in range(2))
    weight = torch.randn(size, generator=g).to(dtype)
    out, total = add_rms_norm(x, residual if has_residual else None, weight, eps=1e-6, weight_offset=1.0)
    expected, expected_total = reference.add_rms_norm(
        x.double(), residual.double() if has_residual else torch.zeros_like(x).double(), weight.double(), 1e-6, 1.0
    )
    bound = 1e-6 if dtype == torch.float32 else 1e-3
    assert relative_error(out, expected) < bound
    assert relative_error(total, expected_total) < bound
    assert has_residual or total is x


@pytest.mark.parametrize(("rows", "size"), [(1, 8), (3, 1025)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_silu_mul(rows: int, size: int, dtype: torch.dtype) -> None:
    gate_up = strided(torch.randn((rows, 2 * size), generator=next(generators(1, size))).to(dtype) * 3)
    expected = reference.silu_mul(gate_up.double())
    assert relative_error(silu_mul(gate_up), expected) < (1e-6 if dtype == torch.float32 else 1e-3)

"""The operators over rows through ctypes, on numpy arrays, for the tests. Compiled programs call their shims."""

import ctypes
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pllm.kernels.cpu.library import CpuLibrary, OperatorError

__all__ = ["add_rms_norm", "norm_rope", "rms_normalize", "silu_mul"]

_pointer, _i64 = ctypes.c_void_p, ctypes.c_int64
_Floats = NDArray[np.float32]


class _RmsNorm(ctypes.Structure):
    """PllmRmsNorm of api.h."""

    _fields_ = (
        *((name, _pointer) for name in ("x", "residual", "weight", "out", "total")),
        *((name, _i64) for name in ("rows", "n", "x_stride", "residual_stride")),
        *((name, ctypes.c_float) for name in ("eps", "weight_offset")),
    )


class _Heads(ctypes.Structure):
    """PllmHeads of api.h."""

    _fields_ = (
        *((name, _pointer) for name in ("x", "weight", "out")),
        *((name, _i64) for name in ("heads", "token_stride", "head_stride")),
    )


class _NormRope(ctypes.Structure):
    """PllmNormRope of api.h."""

    _fields_ = (
        *((name, _Heads) for name in ("q", "k")),
        *((name, _pointer) for name in ("cos", "sin")),
        *((name, _i64) for name in ("tokens", "head_dim", "half", "cos_stride", "sin_stride")),
        *((name, ctypes.c_float) for name in ("eps", "weight_offset")),
    )


def rms_normalize(library: CpuLibrary, x: _Floats, weight: _Floats, eps: float, weight_offset: float) -> _Floats:
    """As `reference.rms_normalize`; x [M, N], its rows evenly apart."""
    return _norm(library, x, None, weight, eps, weight_offset)[0]


def add_rms_norm(  # noqa: PLR0917 - the operator's own arguments, in its order
    library: CpuLibrary, x: _Floats, residual: _Floats, weight: _Floats, eps: float, weight_offset: float
) -> tuple[_Floats, _Floats]:
    """As `reference.add_rms_norm`."""
    normed, total = _norm(library, x, residual, weight, eps, weight_offset)
    assert total is not None
    return normed, total


def silu_mul(library: CpuLibrary, gate_up: _Floats) -> _Floats:
    """As `reference.silu_mul`; gate_up [M, 2 N], its rows evenly apart."""
    rows, width = gate_up.shape
    out = np.empty((rows, width // 2), np.float32)
    _call(
        library, "pllm_silu_mul", _pointer(_address(gate_up)), _i64(rows), _i64(_stride(gate_up, 0)), _i64(width // 2),
        _pointer(out.ctypes.data),
    )  # fmt: skip
    return out


def norm_rope(  # noqa: PLR0917 - the operator's own arguments, in its order
    library: CpuLibrary,
    q: _Floats,
    k: _Floats,
    cos: _Floats | None,
    sin: _Floats | None,
    q_weight: _Floats | None,
    k_weight: _Floats | None,
    eps: float,
    weight_offset: float,
) -> tuple[_Floats, _Floats]:
    """As `reference.norm_rope`; heads contiguous, heads and tokens any way apart."""
    outs = [np.empty(x.shape, np.float32) for x in (q, k)]
    heads = [
        _Heads(
            *(_address(x), None if weight is None else _address(weight), out.ctypes.data),
            *(x.shape[1], _stride(x, 0), _stride(x, 1)),
        )
        for x, weight, out in zip((q, k), (q_weight, k_weight), outs, strict=True)
    ]
    angles = [None if x is None else _address(x) for x in (cos, sin)]
    half = 0 if cos is None else cos.shape[1]
    strides = [0 if x is None else _stride(x, 0) for x in (cos, sin)]
    given = _NormRope(*heads, *angles, q.shape[0], q.shape[2], half, *strides, eps, weight_offset)
    _call(library, "pllm_norm_rope", ctypes.byref(given))
    return outs[0], outs[1]


def _norm(  # noqa: PLR0917 - the operator's own arguments, in its order
    library: CpuLibrary, x: _Floats, residual: _Floats | None, weight: _Floats, eps: float, weight_offset: float
) -> tuple[_Floats, _Floats | None]:
    rows, n = x.shape
    out = np.empty((rows, n), np.float32)
    total = None if residual is None else np.empty((rows, n), np.float32)
    given = _RmsNorm(
        *(_address(x), None if residual is None else _address(residual), _address(weight), out.ctypes.data),
        *(None if total is None else total.ctypes.data, rows, n, _stride(x, 0)),
        *(0 if residual is None else _stride(residual, 0), eps, weight_offset),
    )
    _call(library, "pllm_rms_normalize", ctypes.byref(given))
    return out, total


def _address(array: NDArray[Any]) -> int:
    if array.dtype != np.float32 or (array.size and array.strides[-1] != array.itemsize):
        raise OperatorError(
            f"an array of {array.dtype} with strides {array.strides}: rows of float32 must be contiguous"
        )
    return int(array.ctypes.data)


def _stride(array: NDArray[Any], axis: int) -> int:
    return int(array.strides[axis]) // array.itemsize


def _call(library: CpuLibrary, name: str, *arguments: object) -> None:
    library.call(name, *arguments)

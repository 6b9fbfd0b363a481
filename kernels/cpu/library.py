"""The CPU operator library through ctypes, on numpy arrays, without torch: for the runtime's sampler and for the tests.

bfloat16 has no numpy type: such arrays are uint16 here.
"""

import ctypes
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pllm.kernels.cpu.abi import ABI_VERSION

__all__ = ["ABI_VERSION", "CpuLibrary", "OperatorError", "load_library"]

_PANEL = 32
_DTYPES = {np.dtype(np.float32): 0, np.dtype(np.uint16): 1}
_SCALE_BYTES = 4  # of a key or value in int8
_CACHE_DTYPES = {**_DTYPES, np.dtype(np.int8): 2}

_pointer = ctypes.c_void_p


class OperatorError(Exception):
    """An operator refused its arguments, or this CPU cannot run the library; the message says why."""


class _PagedAttention(ctypes.Structure):
    """PllmPagedAttention of api.h."""

    _fields_ = (
        *((name, _pointer) for name in ("q", "k", "v")),
        *((name, ctypes.c_int64 * 3) for name in ("q_strides", "k_strides", "v_strides")),
        *((name, _pointer) for name in ("kv", "block_table", "query_start", "context_len", "sinks", "out")),
        *(
            (name, ctypes.c_int64)
            for name in (
                *("tokens", "heads", "kv_heads", "head_dim", "sequences", "table_width", "num_blocks", "num_layers"),
                *("block_size", "layer", "sliding_window"),
            )
        ),
        ("kv_dtype", ctypes.c_int32),
        ("scale", ctypes.c_float),
        ("softcap", ctypes.c_float),
    )


_I64, _INT = ctypes.c_int64, ctypes.c_int
_SIGNATURES: dict[str, tuple[Any, ...]] = {
    "pllm_init": (ctypes.c_char_p, ctypes.c_size_t),
    "pllm_set_num_threads": (_INT,),
    "pllm_set_tiling": (_INT, _INT, _INT),
    "pllm_linear": (_pointer, _I64, _I64, _pointer, _INT, _I64, _I64, _pointer, _pointer, _I64),
    "pllm_embedding": (_pointer, _I64, _pointer, _INT, _I64, _I64, _pointer, _I64),
    "pllm_quantized_linear": (
        _pointer,
        _I64,
        _I64,
        _pointer,
        _pointer,
        _I64,
        _I64,
        _I64,
        _pointer,
        _INT,
        _pointer,
        _I64,
    ),
    "pllm_quantized_embedding": (_pointer, _I64, _pointer, _pointer, _I64, _I64, _pointer, _I64),
    "pllm_paged_attention": (ctypes.POINTER(_PagedAttention),),
    "pllm_copy_blocks": (_pointer, _I64, _I64, _pointer, _I64),
    "pllm_argmax": (_pointer, _I64, _I64, _I64, _pointer, _pointer, _pointer),
    "pllm_logsumexp": (_pointer, _I64, _I64, _I64, _pointer),
    "pllm_sample_rows": (_pointer, _I64, _I64, _I64, *[_pointer] * 7),
}


def load_library(path: Path, mode: int = ctypes.DEFAULT_MODE) -> ctypes.CDLL:
    """Load a shared library as it is now.

    The loader knows libraries by how their path is written before it looks at the file: an artifact that was built
    again at the same place would get the code of the one before, as long as the process lives. So the path is written
    in a way that no other file has had: with the bits of its inode, as components that lead nowhere. Raises OSError.
    """
    bits = "".join(".//" if bit == "1" else "./" for bit in f"{path.stat().st_ino:b}")
    return ctypes.CDLL(f"{path.parent}/{bits}{path.name}", mode)


class CpuLibrary:
    """An opened operator library; `open` checks its version and chooses the instruction set."""

    def __init__(self, handle: ctypes.CDLL, isa: str) -> None:
        self._handle = handle
        self.isa = isa

    @classmethod
    def open(cls, path: Path) -> "CpuLibrary":
        """Load the library and choose the instruction set (PLLM_CPU_ISA, else the best of this CPU).

        Raises:
            OperatorError: not an operator library of this version, or this CPU cannot run it.
        """
        try:
            handle = load_library(path)
            version = int(handle.pllm_abi_version())
        except (OSError, AttributeError) as error:
            raise OperatorError(f"{path.name} is no operator library: {error}") from error
        if version != ABI_VERSION:
            raise OperatorError(
                f"{path.name} has version {version}, this pllm speaks {ABI_VERSION}: run pllm build again"
            )
        for name, arguments in _SIGNATURES.items():
            getattr(handle, name).argtypes = arguments
        handle.pllm_last_error.restype = ctypes.c_char_p
        isa = ctypes.create_string_buffer(16)
        library = cls(handle, "")
        library.call("pllm_init", isa, len(isa))
        library.isa = isa.value.decode()
        return library

    def call(self, name: str, *arguments: object) -> None:
        """One function of the C interface. Raises OperatorError where it refuses."""
        if getattr(self._handle, name)(*arguments):
            raise OperatorError(self._handle.pllm_last_error().decode())

    @property
    def num_threads(self) -> int:
        return int(self._handle.pllm_num_threads())

    def set_num_threads(self, threads: int) -> None:
        """Threads of every operator from now on; the processors of this process until this is called."""
        self.call("pllm_set_num_threads", threads)

    def set_tiling(self, streamed: int, blocked: int, rows: int) -> None:
        """How much of a product is done at a time, as `pllm_set_tiling` of api.h has it; in this process, where
        programs of two artifacts share the first one's library."""
        self.call("pllm_set_tiling", streamed, blocked, rows)

    def linear(
        self,
        x: NDArray[np.float32],
        weight: NDArray[Any],
        bias: NDArray[np.float32] | None,
        out_features: int,
        out: NDArray[np.float32] | None = None,
    ) -> NDArray[np.float32]:
        """x [M, K] (rows may be strided) times a packed weight [ceil(N/32), K, 32] -> [M, N]."""
        m, k = x.shape
        _check_packed(weight, out_features, k)
        out = np.empty((m, out_features), np.float32) if out is None else out
        if bias is not None and bias.shape != (out_features,):
            raise OperatorError(f"a bias of {bias.shape} for {out_features} outputs")
        if out.shape != (m, out_features):
            raise OperatorError(f"an output of {out.shape} for ({m}, {out_features})")
        self.call(
            "pllm_linear",
            *(_rows(x, np.float32), m, _stride(x)),
            *(weight.ctypes.data, _DTYPES[weight.dtype], out_features, k),
            None if bias is None else _data(bias, np.float32),
            *(_rows(out, np.float32), _stride(out)),
        )
        return out

    def embedding(self, ids: NDArray[np.int64], weight: NDArray[Any], num_embeddings: int) -> NDArray[np.float32]:
        """ids [T] -> rows [T, K] of a packed weight."""
        k = weight.shape[1]
        _check_packed(weight, num_embeddings, k)
        out = np.empty((len(ids), k), np.float32)
        self.call(
            "pllm_embedding",
            *(_data(ids, np.int64), len(ids), weight.ctypes.data, _DTYPES[weight.dtype], num_embeddings, k),
            *(out.ctypes.data, k),
        )
        return out

    def quantized_linear(  # noqa: PLR0917 - the operator's own arguments, in its order
        self,
        x: NDArray[np.float32],
        weight: NDArray[np.uint8],
        scale: NDArray[Any],
        bias: NDArray[np.float32] | None,
        out_features: int,
        out: NDArray[np.float32] | None = None,
        *,
        gated: bool = False,
    ) -> NDArray[np.float32]:
        """x [M, K] (rows may be strided) times a weight of `kernels/quantization.py`, to [M, out_features].

        int8 with a float32 scale, int4 with a bfloat16 one. gated: the weight has two rows for each output.
        """
        (m, k), n = x.shape, 2 * out_features if gated else out_features
        groups = _check_quantized(weight, scale, n, k)
        out = np.empty((m, out_features), np.float32) if out is None else out
        if bias is not None and bias.shape != (n,):
            raise OperatorError(f"a bias of {bias.shape} for {n} outputs")
        if out.shape != (m, out_features):
            raise OperatorError(f"an output of {out.shape} for ({m}, {out_features})")
        self.call(
            "pllm_quantized_linear",
            *(_rows(x, np.float32), m, _stride(x), weight.ctypes.data, scale.ctypes.data, groups, n, k),
            *(None if bias is None else _data(bias, np.float32), gated, _rows(out, np.float32), _stride(out)),
        )
        return out

    def quantized_embedding(
        self, ids: NDArray[np.int64], weight: NDArray[np.uint8], scale: NDArray[np.float32], dim: int
    ) -> NDArray[np.float32]:
        """ids [T] -> rows [T, dim] of an int8 weight."""
        if _check_quantized(weight, scale, len(scale), dim):
            raise OperatorError("look-ups are made in int8 weights only")
        out = np.empty((len(ids), dim), np.float32)
        self.call(
            "pllm_quantized_embedding",
            *(_data(ids, np.int64), len(ids), weight.ctypes.data, _data(scale, np.float32), len(scale), dim),
            *(out.ctypes.data, dim),
        )
        return out

    def paged_attention(  # noqa: PLR0917 - the operator's own arguments, in its order
        self,
        q: NDArray[np.float32],
        k: NDArray[np.float32],
        v: NDArray[np.float32],
        kv: NDArray[Any],
        block_table: NDArray[np.int32],
        query_start: NDArray[np.int32],
        context_len: NDArray[np.int32],
        sinks: NDArray[np.float32] | None = None,
        *,
        layer: int = 0,
        scale: float = 1.0,
        sliding_window: int = 0,
        softcap: float = 0.0,
        out: NDArray[np.float32] | None = None,
    ) -> NDArray[np.float32]:
        """`kernels/reference.py: paged_attention`; kv is changed in place."""
        tokens, heads, head_dim = q.shape
        num_blocks, num_layers, two, kv_heads, block_size, kv_dim = kv.shape
        sequences, width = block_table.shape
        entry = head_dim + (_SCALE_BYTES if kv.dtype == np.int8 else 0)
        if k.shape != (tokens, kv_heads, head_dim) or v.shape != k.shape or (two, kv_dim) != (2, entry):
            raise OperatorError(f"shapes differ: q {q.shape}, k {k.shape}, v {v.shape}, kv {kv.shape}")
        if query_start.shape != (sequences + 1,) or context_len.shape != (sequences,):
            raise OperatorError(f"shapes differ: {block_table.shape}, {query_start.shape}, {context_len.shape}")
        if sinks is not None and sinks.shape != (heads,):
            raise OperatorError(f"sinks of {sinks.shape} for {heads} heads")
        out = np.empty(q.shape, np.float32) if out is None else out
        if not kv.flags.c_contiguous or kv.dtype not in _CACHE_DTYPES or out.shape != q.shape:
            raise OperatorError(f"kv must be contiguous float32, uint16 or int8, not {kv.dtype}; out of {q.shape}")
        arguments = _PagedAttention(
            q=_strided(q), k=_strided(k), v=_strided(v),
            q_strides=_elements(q), k_strides=_elements(k), v_strides=_elements(v),
            kv=kv.ctypes.data, block_table=_data(block_table, np.int32), query_start=_data(query_start, np.int32),
            context_len=_data(context_len, np.int32), sinks=None if sinks is None else _data(sinks, np.float32),
            out=_data(out, np.float32), tokens=tokens, heads=heads, kv_heads=kv_heads, head_dim=head_dim,
            sequences=sequences, table_width=width, num_blocks=num_blocks, num_layers=num_layers, block_size=block_size,
            layer=layer, sliding_window=sliding_window, kv_dtype=_CACHE_DTYPES[kv.dtype], scale=scale, softcap=softcap,
        )  # fmt: skip
        self.call("pllm_paged_attention", ctypes.byref(arguments))
        return out

    def copy_blocks(self, kv: NDArray[Any], pairs: NDArray[np.int64]) -> None:
        """Copy whole blocks of the pool: pairs [n, 2] of (source, target), in order."""
        if not kv.flags.c_contiguous or pairs.ndim != 2 or pairs.shape[1] != 2:
            raise OperatorError(f"copy_blocks: pairs of {pairs.shape}, or a pool that is not contiguous")
        self.call("pllm_copy_blocks", kv.ctypes.data, len(kv), kv.nbytes // len(kv), _data(pairs, np.int64), len(pairs))

    def argmax(self, logits: NDArray[np.float32]) -> tuple[NDArray[np.int64], NDArray[np.float32], NDArray[np.bool_]]:
        """Per row of [R, V]: the first index of the maximum, the maximum, and whether the row was usable.

        Usable: no NaN, no +inf, not all -inf.
        """
        rows, vocab = logits.shape
        ids, maxima, status = np.empty(rows, np.int64), np.empty(rows, np.float32), np.empty(rows, np.int32)
        self.call(
            "pllm_argmax",
            *(_rows(logits, np.float32), rows, vocab, _stride(logits)),
            *(ids.ctypes.data, maxima.ctypes.data, status.ctypes.data),
        )
        return ids, maxima, status == 0

    def logsumexp(self, logits: NDArray[np.float32]) -> NDArray[np.float64]:
        """Per row of [R, V]; NaN for a row that holds one."""
        rows, vocab = logits.shape
        out = np.empty(rows, np.float64)
        self.call("pllm_logsumexp", _rows(logits, np.float32), rows, vocab, _stride(logits), out.ctypes.data)
        return out

    def sample_rows(  # noqa: PLR0917 - one array per parameter
        self,
        logits: NDArray[np.float32],
        temperature: NDArray[np.float32],
        top_k: NDArray[np.int32],
        top_p: NDArray[np.float32],
        min_p: NDArray[np.float32],
        uniform: NDArray[np.float64],
    ) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
        """One token per row of [R, V] (`kernels/reference.py: sample`), and whether the row was usable."""
        rows, vocab = logits.shape
        parameters = (
            (temperature, np.float32),
            (top_k, np.int32),
            (top_p, np.float32),
            (min_p, np.float32),
            (uniform, np.float64),
        )
        if any(values.shape != (rows,) for values, _ in parameters):
            raise OperatorError(
                f"{rows} rows of logits, but parameters of {[values.shape for values, _ in parameters]}"
            )
        ids, status = np.empty(rows, np.int64), np.empty(rows, np.int32)
        self.call(
            "pllm_sample_rows",
            *(_rows(logits, np.float32), rows, vocab, _stride(logits)),
            *(_data(values, dtype) for values, dtype in parameters),
            *(ids.ctypes.data, status.ctypes.data),
        )
        return ids, status == 0


def _data(array: NDArray[Any], dtype: Any) -> int:
    if array.dtype != dtype or not array.flags.c_contiguous:
        raise OperatorError(
            f"an array must be contiguous {np.dtype(dtype)}, not {array.dtype} with strides {array.strides}"
        )
    return int(array.ctypes.data)


def _rows(array: NDArray[Any], dtype: Any) -> int:
    if array.dtype != dtype or array.ndim != 2 or (array.shape[1] > 1 and array.strides[1] != array.itemsize):
        raise OperatorError(
            f"a matrix must be {np.dtype(dtype)} with contiguous rows, not {array.dtype} {array.strides}"
        )
    return int(array.ctypes.data)


def _stride(array: NDArray[Any]) -> int:
    return int(array.strides[0]) // array.itemsize


def _strided(array: NDArray[Any]) -> int:
    if array.dtype != np.float32 or array.ndim != 3:
        raise OperatorError(f"q, k and v must be float32 of three dimensions, not {array.dtype} of {array.ndim}")
    return int(array.ctypes.data)


def _elements(array: NDArray[Any]) -> Any:
    return (ctypes.c_int64 * 3)(*(stride // array.itemsize for stride in array.strides))


def _check_packed(weight: NDArray[Any], out_features: int, in_features: int) -> None:
    expected = (-(-out_features // _PANEL), in_features, _PANEL)
    if weight.shape != expected or weight.dtype not in _DTYPES or not weight.flags.c_contiguous:
        raise OperatorError(
            f"a packed weight must be {expected}, contiguous, float32 or uint16, not {weight.shape} {weight.dtype}"
        )


def _check_quantized(weight: NDArray[np.uint8], scale: NDArray[Any], out_features: int, in_features: int) -> int:
    """The number of groups of an int4 weight's scales; 0 for int8."""
    panels, is_int8 = -(-out_features // _PANEL), scale.dtype == np.float32
    groups = 0 if is_int8 or scale.ndim != 3 else scale.shape[1]
    expected = (panels, -(-in_features // (4 if is_int8 else 8)), _PANEL, 4)
    scales = (out_features,) if is_int8 else (panels, groups, _PANEL)
    fits = weight.shape == expected and weight.dtype == np.uint8 and weight.flags.c_contiguous
    if not fits or scale.shape != scales or scale.dtype not in _DTYPES or not scale.flags.c_contiguous:
        raise OperatorError(
            f"a quantised weight of {weight.shape} {weight.dtype}, scale {scale.shape} {scale.dtype}, where contiguous "
            f"uint8 {expected} and {scales} are wanted"
        )
    return groups

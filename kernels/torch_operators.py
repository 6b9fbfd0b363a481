"""The operators as torch sees them: defined once, so that a graph can be traced and checked with them.

Only the build and the tests import this. The implementations given to torch, for tensors on a CPU, are the
specifications themselves (`kernels/reference.py`): what runs in a compiled program is the native library, which never
passes through here. `kernels/cuda/operators.py` adds those for CUDA.
"""

import functools
from collections.abc import Callable
from typing import Any

import torch

from pllm.kernels import reference
from pllm.kernels.registry import NAMESPACE, OPERATORS

__all__ = ["define_operators"]


@functools.cache
def define_operators() -> torch.library.Library:
    """Register every operator with torch, with its shapes and its specification; a second call does nothing more.

    The returned library owns the registration: torch forgets the operators when it is collected, so it is kept here.
    """
    library = torch.library.Library(NAMESPACE, "DEF")
    for operator in OPERATORS.values():
        library.define(operator.schema)
        specification = _ADAPTED.get(operator.name) or getattr(reference, operator.reference)
        library.impl(operator.name, specification, "CPU")
        torch.library.register_fake(operator.qualified_name, _SHAPES[operator.name], lib=library)
    return library


def _attend(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, *inputs: Any) -> torch.Tensor:
    """The specification in the graph's layout: q, k, v [1, heads, T, D], as transformers has them, to [1, T, H, D]."""
    q, k, v = (tensor[0].transpose(0, 1) for tensor in (q, k, v))
    return reference.paged_attention(q, k, v, *inputs).unsqueeze(0)


def _token_slots(*inputs: Any) -> torch.Tensor:
    return reference.token_slots(*inputs[:5])


def _cached_attention(*inputs: Any) -> torch.Tensor:
    """The specification without what only says how: the counters, the most sequences, whether the step decodes."""
    return reference.cached_attention(*inputs[:6], *inputs[7:13])


def _small_linear(*inputs: Any) -> torch.Tensor:
    return reference.small_linear(*inputs[:8])


def _record(history: torch.Tensor, slots: torch.Tensor, tokens: torch.Tensor, max_rows: int) -> None:
    reference.record(history, slots, tokens)


_ADAPTED: dict[str, Callable[..., torch.Tensor | None]] = {
    "paged_attention": _attend,
    "token_slots": _token_slots,
    "cached_attention": _cached_attention,
    "small_linear": _small_linear,
    "record": _record,
}
"""Operators whose arguments are not their specification's."""


def _packed_linear(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, out_features: int) -> torch.Tensor:
    return x.new_empty((*x.shape[:-1], out_features))


def _packed_grouped_linear(
    x: torch.Tensor, weight: torch.Tensor, ends: torch.Tensor, out_features: int
) -> torch.Tensor:
    return x.new_empty((x.shape[0], out_features))


def _quantized_linear(
    x: torch.Tensor, weight: torch.Tensor, scale: torch.Tensor, bias: torch.Tensor | None, out_features: int
) -> torch.Tensor:
    return x.new_empty((*x.shape[:-1], out_features))


def _quantized_gated_linear(
    x: torch.Tensor, weight: torch.Tensor, scale: torch.Tensor, out_features: int
) -> torch.Tensor:
    return x.new_empty((*x.shape[:-1], out_features))


def _quantized_embedding(
    ids: torch.Tensor, weight: torch.Tensor, scale: torch.Tensor, embedding_dim: int
) -> torch.Tensor:
    return torch.empty((*ids.shape, embedding_dim), dtype=torch.float32, device=weight.device)


def _packed_embedding(ids: torch.Tensor, weight: torch.Tensor, num_embeddings: int) -> torch.Tensor:
    return torch.empty((*ids.shape, weight.shape[1]), dtype=torch.float32, device=weight.device)


def _paged_attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    kv: torch.Tensor,
    block_table: torch.Tensor,
    query_start: torch.Tensor,
    context_len: torch.Tensor,
    sinks: torch.Tensor | None,
    layer: int,
    scale: float,
    sliding_window: int,
    softcap: float,
) -> torch.Tensor:
    batch, heads, tokens, _ = q.shape
    return q.new_empty((batch, tokens, heads, v.shape[3]))


def _slots_shape(
    block_table: torch.Tensor,
    query_start: torch.Tensor,
    context_len: torch.Tensor,
    tokens: torch.SymInt,
    block_size: int,
    max_sequences: int,
) -> torch.Tensor:
    return block_table.new_empty((tokens,), dtype=torch.int32)


def _norm_rope_write(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, *inputs: Any
) -> tuple[torch.Tensor, torch.Tensor]:
    return q.new_empty(q.shape), k.new_empty(k.shape[:2], dtype=torch.int32)


def _norm_rope(q: torch.Tensor, k: torch.Tensor, *inputs: Any) -> tuple[torch.Tensor, torch.Tensor]:
    return q.new_empty(q.shape), k.new_empty(k.shape)


def _like(x: torch.Tensor, *inputs: Any) -> torch.Tensor:
    return x.new_empty(x.shape)


def _add_rms_norm(x: torch.Tensor, *inputs: Any) -> tuple[torch.Tensor, torch.Tensor]:
    return x.new_empty(x.shape), x.new_empty(x.shape)


def _silu_mul(gate_up: torch.Tensor) -> torch.Tensor:
    return gate_up.new_empty((gate_up.shape[0], gate_up.shape[1] // 2))


def _small_linear_shape(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    norm_weight: torch.Tensor | None,
    residual: torch.Tensor | None,
    eps: float,
    weight_offset: float,
    gated: bool,
    max_rows: int,
) -> torch.Tensor:
    return x.new_empty((x.shape[0], weight.shape[0] // (2 if gated else 1)))


def _tokens(logits: torch.Tensor, *inputs: Any) -> torch.Tensor:
    return logits.new_empty((logits.shape[0],), dtype=torch.int64)


def _nothing(*inputs: Any) -> None:
    return None


_SHAPES: dict[str, Callable[..., Any]] = {
    "packed_linear": _packed_linear,
    "packed_grouped_linear": _packed_grouped_linear,
    "packed_embedding": _packed_embedding,
    "quantized_linear": _quantized_linear,
    "quantized_gated_linear": _quantized_gated_linear,
    "quantized_embedding": _quantized_embedding,
    "paged_attention": _paged_attention,
    "token_slots": _slots_shape,
    "norm_rope": _norm_rope,
    "norm_rope_write": _norm_rope_write,
    "cached_attention": _like,
    "add_rms_norm": _add_rms_norm,
    "rms_normalize": _like,
    "silu_mul": _silu_mul,
    "small_linear": _small_linear_shape,
    "sample_tokens": _tokens,
    "penalize": _nothing,
    "record": _nothing,
}

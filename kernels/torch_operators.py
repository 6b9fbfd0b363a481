"""The operators as torch sees them: defined once, so that a graph can be traced and checked with them.

Only the build and the tests import this. The implementations given to torch are the specifications themselves
(`kernels/reference.py`): what runs in a compiled program is the native library, which never passes through here.
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
        specification = _attend if operator.name == "paged_attention" else getattr(reference, operator.reference)
        library.impl(operator.name, specification, "CPU")
        torch.library.register_fake(operator.qualified_name, _SHAPES[operator.name], lib=library)
    return library


def _attend(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, *inputs: Any) -> torch.Tensor:
    """The specification in the graph's layout: q, k, v [1, heads, T, D], as transformers has them, to [1, T, H, D]."""
    q, k, v = (tensor[0].transpose(0, 1) for tensor in (q, k, v))
    return reference.paged_attention(q, k, v, *inputs).unsqueeze(0)


def _packed_linear(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, out_features: int) -> torch.Tensor:
    return x.new_empty((*x.shape[:-1], out_features))


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


_SHAPES: dict[str, Callable[..., torch.Tensor]] = {
    "packed_linear": _packed_linear,
    "packed_embedding": _packed_embedding,
    "paged_attention": _paged_attention,
}
def _packed_grouped_linear(
    x: torch.Tensor, weight: torch.Tensor, ends: torch.Tensor, out_features: int
) -> torch.Tensor:
    return x.new_empty((x.shape[0], out_features))


    "packed_grouped_linear": _packed_grouped_linear,

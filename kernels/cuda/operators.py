"""The operators of the graph on CUDA: what each launches, and how torch comes to know.

The same `pllm::` operators are traced for every device. Where their tensors are on a GPU, they keep whole through
torch.export, so that passes may rewrite them, and dissolve into kernel launches when the graph is compiled: as
`torch.library.triton_op` does for operators of its own, done here for ours, which have other devices too. So
AOTInductor compiles the kernels into the program.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.functional_tensor import FunctionalTensorMode
from torch.export._trace import custom_triton_ops_decomposition_disabled

from pllm.kernels.cuda import cache_write, penalties, pointwise, sampling
from pllm.kernels.cuda.configurations import Configurations
from pllm.kernels.cuda.decode_attention import decode_attention
from pllm.kernels.cuda.launch import Integer
from pllm.kernels.cuda.prefill_attention import prefill_attention
from pllm.kernels.cuda.small_linear import small_linear
from pllm.kernels.registry import OPERATORS
from pllm.kernels.torch_operators import define_operators

__all__ = ["CudaOperators", "register"]


@dataclass(frozen=True, slots=True)
class CudaOperators:
    """The operators for one device. Methods are called as the registry's schemas say; specifications are in
    `kernels/reference.py`, layouts and limits with the kernels."""

    configurations: Configurations
    max_sequences: int = 1024
    """Of a step, for `paged_attention`, which does not say."""

    def token_slots(
        self,
        block_table: Tensor,
        query_start: Tensor,
        context_len: Tensor,
        tokens: Integer,
        block_size: int,
        max_sequences: int,
    ) -> Tensor:
        return cache_write.token_slots(
            block_table, query_start, context_len, tokens, block_size, max_sequences=max_sequences
        )

    def norm_rope_write(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        cos: Tensor | None,
        sin: Tensor | None,
        q_weight: Tensor | None,
        k_weight: Tensor | None,
        kv: Tensor,
        slots: Tensor,
        layer: int,
        eps: float,
        weight_offset: float,
        interleaved: bool,
        k_scale: float,
        v_scale: float,
    ) -> tuple[Tensor, Tensor]:
        return cache_write.norm_rope_write(
            q, k, v, cos, sin, q_weight, k_weight, kv, slots, layer=layer, eps=eps, weight_offset=weight_offset,
            interleaved=interleaved, k_scale=k_scale, v_scale=v_scale,
        )  # fmt: skip

    def cached_attention(
        self,
        q: Tensor,
        kv: Tensor,
        block_table: Tensor,
        query_start: Tensor,
        context_len: Tensor,
        sinks: Tensor | None,
        arrivals: Tensor,
        layer: int,
        scale: float,
        sliding_window: int,
        softcap: float,
        k_scale: float,
        v_scale: float,
        max_sequences: int,
        decodes: bool,
    ) -> Tensor:
        """One kernel where the step only `decodes`; else two, which share the sequences by their new tokens."""
        heads, head_dim, kv_heads = q.shape[1], q.shape[2], kv.shape[3]
        out = torch.empty(q.shape, dtype=q.dtype, device=q.device)
        rest: dict[str, Any] = {
            "layer": layer, "scale": scale, "sliding_window": sliding_window, "softcap": softcap, "k_scale": k_scale,
            "v_scale": v_scale, "max_sequences": max_sequences,
        }  # fmt: skip
        shape = (head_dim, heads // kv_heads)
        decode_attention(
            q, kv, block_table, query_start, context_len, sinks, arrivals, out,
            configuration=self.configurations.for_decode(*shape), **rest,
        )  # fmt: skip
        if not decodes:
            prefill_attention(
                q, kv, block_table, query_start, context_len, sinks, out, least_tokens=2,
                configuration=self.configurations.for_prefill(*shape), **rest,
            )  # fmt: skip
        return out

    def paged_attention(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        kv: Tensor,
        block_table: Tensor,
        query_start: Tensor,
        context_len: Tensor,
        sinks: Tensor | None,
        layer: int,
        scale: float,
        sliding_window: int,
        softcap: float,
    ) -> Tensor:
        """As traced, before any pass: slots, write and attention; q, k, v are [1, heads, T, D]."""
        q, k, v = (tensor.squeeze(0).transpose(0, 1) for tensor in (q, k, v))
        slots = self.token_slots(block_table, query_start, context_len, q.shape[0], kv.shape[4], self.max_sequences)
        q, arrivals = cache_write.norm_rope_write(
            q, k, v, None, None, None, None, kv, slots, layer=layer, eps=0.0, weight_offset=0.0, interleaved=False,
            k_scale=1.0, v_scale=1.0, writes_q=False,
        )  # fmt: skip
        return self.cached_attention(
            q, kv, block_table, query_start, context_len, sinks, arrivals, layer, scale, sliding_window, softcap,
            1.0, 1.0, self.max_sequences, False,
        ).unsqueeze(0)  # fmt: skip

    def add_rms_norm(
        self, x: Tensor, residual: Tensor, weight: Tensor, eps: float, weight_offset: float
    ) -> tuple[Tensor, Tensor]:
        return pointwise.add_rms_norm(x, residual, weight, eps=eps, weight_offset=weight_offset)

    def rms_normalize(self, x: Tensor, weight: Tensor, eps: float, weight_offset: float) -> Tensor:
        return pointwise.add_rms_norm(x, None, weight, eps=eps, weight_offset=weight_offset)[0]

    def silu_mul(self, gate_up: Tensor) -> Tensor:
        return pointwise.silu_mul(gate_up)

    def small_linear(
        self,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        norm_weight: Tensor | None,
        residual: Tensor | None,
        eps: float,
        weight_offset: float,
        gated: bool,
        max_rows: int,
    ) -> Tensor:
        size = weight.shape[0] // (2 if gated else 1)
        return small_linear(
            x, weight, bias, norm_weight, residual, eps=eps, weight_offset=weight_offset, gated=gated,
            max_rows=max_rows, configuration=self.configurations.for_small_linear(size, weight.shape[1], max_rows),
        )  # fmt: skip

    def sample_tokens(
        self,
        logits: Tensor,
        temperature: Tensor,
        top_k: Tensor,
        top_p: Tensor,
        min_p: Tensor,
        seeds: Tensor,
        positions: Tensor,
    ) -> Tensor:
        return sampling.sample(logits, temperature, top_k, top_p, min_p, seeds, positions)

    def penalize(
        self,
        logits: Tensor,
        history: Tensor,
        slots: Tensor,
        repetition: Tensor,
        frequency: Tensor,
        presence: Tensor,
    ) -> None:
        penalties.penalize(logits, history, slots, repetition, frequency, presence)

    def record(self, history: Tensor, slots: Tensor, tokens: Tensor, max_rows: int) -> None:
        penalties.record(history, slots, tokens, max_rows=max_rows)


def register(operators: CudaOperators) -> torch.library.Library:
    """Give torch the operators' implementations on CUDA, for as long as the returned library is kept.

    Raises RuntimeError where another set is registered: a process builds for one device at a time.
    """
    define_operators()
    library = torch.library.Library("pllm", "IMPL")
    for operator in OPERATORS.values():
        if (method := operator.implementations.get("cuda")) is None:
            continue
        implementation = getattr(operators, method)
        library.impl(operator.name, implementation, "CUDA")
        torch.library.register_torch_dispatch(
            operator.qualified_name, FunctionalTensorMode, _decomposition(implementation), lib=library
        )
    return library


def _decomposition(implementation: Callable[..., Any]) -> Callable[..., Any]:
    """What happens to an operator while a graph is made functional: on CUDA, and past export, its launches."""

    def decompose(mode: Any, op: Any, types: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        device = next(argument.device.type for argument in args if isinstance(argument, Tensor))
        if device != "cuda" or custom_triton_ops_decomposition_disabled():
            return mode.__torch_dispatch__(op, types, args, kwargs)
        with mode:
            return implementation(*args, **kwargs)

    return decompose

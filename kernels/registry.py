"""The one list of operators that a compiled graph may call, and what runs each of them on each kind of device.

Reading it costs no torch: `kernels/reference.py` holds the specifications, named here.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

__all__ = ["NAMESPACE", "OPERATORS", "Operator"]

NAMESPACE = "pllm"


@dataclass(frozen=True, slots=True)
class Operator:
    """An operator of the graph.

    `schema` is torch's, without the namespace; `reference` names the function of `kernels/reference.py` that says what
    it computes; `implementations` maps a device kind to the symbol that does it there ("cpu": a function of the C
    interface, `kernels/cpu/api.h`; programs call it through `kernels/cpu/shim.cpp`, by the operator's name without its
    namespace, which is why no operator may be called as one of torch's own; "cuda": a method of `CudaOperators`,
    `kernels/cuda/operators.py`, which launches Triton kernels that are compiled into the program).
    """

    name: str
    schema: str
    reference: str
    implementations: Mapping[str, str]

    @property
    def qualified_name(self) -> str:
        return f"{NAMESPACE}::{self.name}"


def _operator(name: str, reference: str, arguments: str, **implementations: str) -> tuple[str, Operator]:
    return name, Operator(name, f"{name}{arguments}", reference, MappingProxyType(implementations))


OPERATORS: Mapping[str, Operator] = MappingProxyType(
    dict(
        (
            _operator(
                "packed_linear",
                "linear",
                "(Tensor x, Tensor weight, Tensor? bias, int out_features) -> Tensor",
                cpu="pllm_linear",
            ),
            _operator(
                "packed_grouped_linear",
                "grouped_linear",
                "(Tensor x, Tensor weight, Tensor ends, int out_features) -> Tensor",
                cpu="pllm_linear",
            ),
            _operator(
                "packed_embedding",
                "embedding",
                "(Tensor ids, Tensor weight, int num_embeddings) -> Tensor",
                cpu="pllm_embedding",
            ),
            _operator(
                "quantized_linear",
                "quantized_linear",
                "(Tensor x, Tensor weight, Tensor scale, Tensor? bias, int out_features) -> Tensor",
                cpu="pllm_quantized_linear",
            ),
            _operator(
                "quantized_gated_linear",
                "quantized_gated_linear",
                "(Tensor x, Tensor weight, Tensor scale, int out_features) -> Tensor",
                cpu="pllm_quantized_linear",
            ),
            _operator(
                "quantized_embedding",
                "quantized_embedding",
                "(Tensor ids, Tensor weight, Tensor scale, int embedding_dim) -> Tensor",
                cpu="pllm_quantized_embedding",
            ),
            _operator(
                "paged_attention",
                "paged_attention",
                "(Tensor q, Tensor k, Tensor v, Tensor(a!) kv, Tensor block_table, "
                "Tensor query_start, Tensor context_len, Tensor? sinks, "
                "int layer, float scale, int sliding_window, float softcap) -> Tensor",
                cpu="pllm_paged_attention",
                cuda="paged_attention",
            ),
            _operator(
                "norm_rope",
                "norm_rope",
                "(Tensor q, Tensor k, Tensor? cos, Tensor? sin, Tensor? q_weight, Tensor? k_weight, float eps, "
                "float weight_offset) -> (Tensor, Tensor)",
                cpu="pllm_norm_rope",
            ),
            # What a graph for CUDA is rewritten to: `kernels/cuda/__init__.py` lists them layer by layer.
            _operator(
                "token_slots",
                "token_slots",
                "(Tensor block_table, Tensor query_start, Tensor context_len, SymInt tokens, int block_size, "
                "int max_sequences) -> Tensor",
                cuda="token_slots",
            ),
            _operator(
                "norm_rope_write",
                "norm_rope_write",
                "(Tensor q, Tensor k, Tensor v, Tensor? cos, Tensor? sin, Tensor? q_weight, Tensor? k_weight, "
                "Tensor(a!) kv, Tensor slots, int layer, float eps, float weight_offset, bool interleaved, "
                "float k_scale, float v_scale) -> (Tensor, Tensor)",
                cuda="norm_rope_write",
            ),
            _operator(
                "cached_attention",
                "cached_attention",
                "(Tensor q, Tensor kv, Tensor block_table, Tensor query_start, Tensor context_len, Tensor? sinks, "
                "Tensor(a!) arrivals, int layer, float scale, int sliding_window, float softcap, float k_scale, "
                "float v_scale, int max_sequences, bool decodes) -> Tensor",
                cuda="cached_attention",
            ),
            _operator(
                "add_rms_norm",
                "add_rms_norm",
                "(Tensor x, Tensor residual, Tensor weight, float eps, float weight_offset) -> (Tensor, Tensor)",
                cpu="pllm_rms_normalize",
                cuda="add_rms_norm",
            ),
            _operator(
                "rms_normalize",
                "rms_normalize",
                "(Tensor x, Tensor weight, float eps, float weight_offset) -> Tensor",
                cpu="pllm_rms_normalize",
                cuda="rms_normalize",
            ),
            _operator("silu_mul", "silu_mul", "(Tensor gate_up) -> Tensor", cpu="pllm_silu_mul", cuda="silu_mul"),
            _operator(
                "small_linear",
                "small_linear",
                "(Tensor x, Tensor weight, Tensor? bias, Tensor? norm_weight, Tensor? residual, float eps, "
                "float weight_offset, bool gated, int max_rows) -> Tensor",
                cuda="small_linear",
            ),
            _operator(
                "sample_tokens",
                "sample_tokens",
                "(Tensor logits, Tensor temperature, Tensor top_k, Tensor top_p, Tensor min_p, Tensor seeds, "
                "Tensor positions) -> Tensor",
                cuda="sample_tokens",
            ),
            _operator(
                "penalize",
                "penalize",
                "(Tensor(a!) logits, Tensor history, Tensor slots, Tensor repetition, Tensor frequency, "
                "Tensor presence) -> ()",
                cuda="penalize",
            ),
            _operator(
                "record",
                "record",
                "(Tensor(a!) history, Tensor slots, Tensor tokens, int max_rows) -> ()",
                cuda="record",
            ),
        )
    )
)

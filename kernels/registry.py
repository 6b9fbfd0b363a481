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
    namespace, which is why no operator may be called as one of torch's own).
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
            _operator(
                "packed_grouped_linear",
                "grouped_linear",
                "(Tensor x, Tensor weight, Tensor ends, int out_features) -> Tensor",
                cpu="pllm_linear",
            ),
                "packed_embedding",
                "embedding",
                "(Tensor ids, Tensor weight, int num_embeddings) -> Tensor",
                cpu="pllm_embedding",
            ),
            _operator(
                "paged_attention",
                "paged_attention",
                "(Tensor q, Tensor k, Tensor v, Tensor(a!) kv, Tensor block_table, "
                "Tensor query_start, Tensor context_len, Tensor? sinks, "
                "int layer, float scale, int sliding_window, float softcap) -> Tensor",
                cpu="pllm_paged_attention",
            ),
        )
    )
)

"""Pack experts: products of token groups with the weights of their experts become operators over packed weights.

transformers gathers the tokens of each expert and multiplies group by group (`grouped_mm`, integrations/moe.py there).
Under export that is an operator of its own, which no compiled program can call.
"""

import torch
from torch.fx import Node

from pllm.build.traced import Traced, argument, value

__all__ = ["pack_experts"]

_TRANSPOSITIONS = frozenset(((-2, -1), (-1, -2), (1, 2), (2, 1)))


def pack_experts(traced: Traced, storage: torch.dtype) -> str:
    """A weight that is used in any other way stays as it is, and so do its products."""
    products = [node for node in traced.graph.nodes if _is_grouped_product(node)]
    readers: dict[tuple[Node, bool], list[Node]] = {}
    for product in products:
        weight, stored_by_rows = argument(product, 1), False
        if weight.target is torch.ops.aten.transpose.int and tuple(weight.args[1:]) in _TRANSPOSITIONS:
            weight, stored_by_rows = argument(weight, 0), True
        readers.setdefault((weight, stored_by_rows), []).append(product)
    packed = 0
    for (weight, stored_by_rows), calls in readers.items():
        if weight.name not in traced.sources or not _is_read_only_by(weight, calls, stored_by_rows=stored_by_rows):
            continue
        for product in calls:
            x, ends = argument(product, 0), argument(product, 2)
            out_features = value(product).shape[1]
            product.target = torch.ops.pllm.packed_grouped_linear.default
            product.args = (x, weight, ends, out_features)
        traced.pack(weight, storage, transposed=not stored_by_rows)
        packed += len(calls)
    return f"{packed} of {len(products)} products of experts"


def _is_grouped_product(node: Node) -> bool:
    """By its name: transformers defines the operator only where a model needs it."""
    return isinstance(node.target, torch._ops.OpOverload) and node.target.name() == "transformers::grouped_mm_fallback"


def _is_read_only_by(weight: Node, calls: list[Node], *, stored_by_rows: bool) -> bool:
    users = list(weight.users)
    if stored_by_rows:
        users = [user for transposition in users for user in transposition.users]
    return set(users) == set(calls)

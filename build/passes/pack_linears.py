"""Pack linears: products with a constant weight, and look-ups in one, become operators over the packed layout.

An embedding that shares its table with the head shares the packed one: weights are held once.
"""

import torch
from torch.fx import Node

from pllm.build.traced import Traced, argument, value

__all__ = ["pack_linears"]


def pack_linears(traced: Traced, storage: torch.dtype) -> str:
    linears = [node for node in traced.calls(torch.ops.aten.linear.default) if _constant(traced, node.args[1])]
    packed = {argument(node, 1): value(argument(node, 1)).shape[0] for node in linears}
    lookups = [node for node in traced.calls(torch.ops.aten.embedding.default) if _constant(traced, node.args[0])]
    packed |= {argument(node, 0): value(argument(node, 0)).shape[0] for node in lookups}
    for node in linears:
        x, weight, bias = argument(node, 0), argument(node, 1), node.args[2] if len(node.args) > 2 else None
        node.target = torch.ops.pllm.packed_linear.default
        node.args = (x, weight, bias, packed[weight])
    for node in lookups:
        weight, ids = argument(node, 0), argument(node, 1)
        node.target, node.kwargs = torch.ops.pllm.packed_embedding.default, {}
        node.args = (ids, weight, packed[weight])
    for weight in packed:
        traced.pack(weight, storage)
    return f"{len(linears)} products and {len(lookups)} look-ups over {len(packed)} packed weights"


def _constant(traced: Traced, weight: object) -> bool:
    return isinstance(weight, Node) and weight.name in traced.sources and value(weight).ndim == 2

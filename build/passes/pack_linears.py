"""Pack linears: products with a constant weight, and look-ups in one, become operators over the packed layout.

An embedding that shares its table with the head shares the packed one: weights are held once.
"""

import torch
from torch.fx import Node

from pllm.build.traced import Traced, argument, value

__all__ = ["is_linear_weight", "pack_linears"]


def pack_linears(traced: Traced, storage: torch.dtype) -> str:
    """A weight that is used in any other way stays as it is, and so do its products and look-ups."""
    rows = {node: value(node).shape[0] for node in traced.graph.nodes if is_linear_weight(traced, node)}
    linears = [node for node in traced.calls(torch.ops.aten.linear.default) if node.args[1] in rows]
    lookups = [node for node in traced.calls(torch.ops.aten.embedding.default) if node.args[0] in rows]
    for node in linears:
        x, weight, bias = argument(node, 0), argument(node, 1), node.args[2] if len(node.args) > 2 else None
        node.target = torch.ops.pllm.packed_linear.default
        node.args = (x, weight, bias, rows[weight])
    for node in lookups:
        weight, ids = argument(node, 0), argument(node, 1)
        node.target, node.kwargs = torch.ops.pllm.packed_embedding.default, {}
        node.args = (ids, weight, rows[weight])
    for weight in rows:
        traced.pack(weight, storage)
    return f"{len(linears)} products and {len(lookups)} look-ups over {len(rows)} packed weights"


def is_linear_weight(traced: Traced, node: Node) -> bool:
    """A constant [N, K] that is only ever the weight of a product or the table of a look-up."""
    return (
        node.name in traced.sources
        and value(node).ndim == 2
        and bool(node.users)
        and all(_reads_as_weight(user, node) for user in node.users)
    )


def _reads_as_weight(user: Node, weight: Node) -> bool:
    places: dict[object, int] = {torch.ops.aten.linear.default: 1, torch.ops.aten.embedding.default: 0}
    arguments = [*user.args, *user.kwargs.values()]
    return [i for i, each in enumerate(arguments) if each is weight] == [places.get(user.target)]

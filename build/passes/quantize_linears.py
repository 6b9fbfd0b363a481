"""Quantize linears: products with int8 or int4 weights, and look-ups in int8 ones.

A table that is looked up in, and a head, which is often the same table, are int8 in either scheme: the rows of rare
tokens matter as much as those of common ones, and the head decides the token.
"""

import torch
from torch.fx import Node

from pllm.build.passes.pack_linears import is_linear_weight
from pllm.build.traced import Traced, WeightForm, argument, value

__all__ = ["INT4_GROUP", "quantize_linears"]

INT4_GROUP = 32


def quantize_linears(traced: Traced, storage: torch.dtype, *, form: WeightForm) -> str:  # noqa: ARG001  (a pass takes both)
    """What has no weight that qualifies is left to the packing pass."""
    head = _head(traced)
    counts = {WeightForm.INT8: 0, WeightForm.INT4: 0}
    for weight in [node for node in traced.graph.nodes if is_linear_weight(traced, node)]:
        users = list(weight.users)
        rows, columns = value(weight).shape
        is_table = any(user.target is torch.ops.aten.embedding.default for user in users) or weight is head
        chosen = WeightForm.INT8 if is_table or columns % INT4_GROUP else form
        scale = traced.quantize(weight, chosen, INT4_GROUP)
        counts[chosen] += 1
        for user in users:
            if user.target is torch.ops.aten.embedding.default:
                user.target, user.kwargs = torch.ops.pllm.quantized_embedding.default, {}
                user.args = (argument(user, 1), weight, scale, columns)
            else:
                bias = user.args[2] if len(user.args) > 2 else None
                user.target = torch.ops.pllm.quantized_linear.default
                user.args = (argument(user, 0), weight, scale, bias, rows)
    return f"{counts[WeightForm.INT8]} weights in int8, {counts[WeightForm.INT4]} in int4"


def _head(traced: Traced) -> Node | None:
    """The weight of the last product of the graph."""
    products = traced.calls(torch.ops.aten.linear.default)
    return argument(products[-1], 1) if products else None

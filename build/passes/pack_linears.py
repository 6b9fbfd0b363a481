"""Pack linears: products with a constant weight, and look-ups in one, become operators over the packed layout.

An embedding that shares its table with the head shares the packed one: weights are held once.

A weight that the checkpoint has in float8, with a scale for each output, is stored in bfloat16 as it is, which float8
fits, and what comes of its product is scaled.
"""

from collections.abc import Callable

import torch
from torch.fx import Node

from pllm.build.passes.patterns import call
from pllm.build.quantized_checkpoint import QuantizedWeight
from pllm.build.traced import Traced, argument, value

__all__ = ["is_linear_weight", "pack_linears"]


def pack_linears(
    traced: Traced, storage: torch.dtype, *, stored: Callable[[str], QuantizedWeight | None] = lambda _: None
) -> str:
    """A weight that is used in any other way stays as it is, and so do its products and look-ups. ``stored``: a
    parameter as the checkpoint has rounded it."""
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
    unscaled = 0
    for weight in rows:
        if storage == torch.bfloat16 and _is_float8(traced, weight, stored):
            _scale_products(traced, weight, traced.pack_unscaled(weight, storage))
            unscaled += 1
        else:
            traced.pack(weight, storage)
    said = f"{len(linears)} products and {len(lookups)} look-ups over {len(rows)} packed weights"
    return said + (f", {unscaled} of them the checkpoint's own float8" if unscaled else "")


def _is_float8(traced: Traced, weight: Node, stored: Callable[[str], QuantizedWeight | None]) -> bool:
    parts = [stored(part) for part in traced.sources[weight.name].parts]
    return all(user.target is torch.ops.pllm.packed_linear.default for user in weight.users) and all(
        part is not None and part.is_float and part.scale.shape[1] == 1 for part in parts
    )


def _scale_products(traced: Traced, weight: Node, scale: Node) -> None:
    for product in list(weight.users):
        bias = product.args[2]
        users = list(product.users)
        product.args = (*product.args[:2], None, product.args[3])
        with traced.graph.inserting_after(product):
            scaled = call(traced, torch.ops.aten.mul.Tensor, product, scale)
        if isinstance(bias, Node):
            with traced.graph.inserting_after(scaled):
                scaled = call(traced, torch.ops.aten.add.Tensor, scaled, bias)
        for user in users:
            user.replace_input_with(product, scaled)


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

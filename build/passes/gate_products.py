"""Gate products: a product with whole-number weights whose only user is SiLU·mul applies it to its own sums.

The weight's rows are put in another order for that, a gate and its up half a panel apart, so that both are in the
registers together: the 2N outputs are never written, and N are.
"""

import torch
from torch.fx import Node

from pllm.build.passes.patterns import call
from pllm.build.traced import Traced, argument, value
from pllm.kernels.packing import PANEL

__all__ = ["gate_products"]

_pllm = torch.ops.pllm


def gate_products(traced: Traced, _: object) -> str:
    """Those without a bias, of whole panels. Others keep both operators."""
    count = 0
    for silu in traced.calls(_pllm.silu_mul.default):
        product = _product(argument(silu, 0))
        if product is None:
            continue
        x, weight, scale, bias, rows = product.args
        assert isinstance(x, Node) and isinstance(weight, Node) and isinstance(scale, Node) and isinstance(rows, int)
        if bias is not None or rows % PANEL or len(weight.users) > 1:
            continue
        traced.alternate_gates(weight, scale)
        with traced.graph.inserting_before(silu):
            gated = call(traced, _pllm.quantized_gated_linear.default, x, weight, scale, rows // 2)
            if value(gated).ndim > value(silu).ndim:
                gated = call(traced, torch.ops.aten.squeeze.dim, gated, 0)
        silu.replace_all_uses_with(gated)
        count += 1
    return f"{count} products"


def _product(node: Node) -> Node | None:
    """The product of which nobody else makes use, seen through the view that makes it [T, N]."""
    view = node.target is torch.ops.aten.squeeze.dim
    product = argument(node, 0) if view else node
    used_once = all(len(each.users) == 1 for each in (node, product))
    return product if used_once and product.target is _pllm.quantized_linear.default else None

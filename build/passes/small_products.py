"""Small products: with few rows a product reads its weight once and does little else, so what stands around it comes
along: the norm before it, SiLU·mul or the residual's sum after it.

The head is left to the library: it has no neighbours to take along.
"""

import torch
from torch.fx import Node

from pllm.build.passes.patterns import call, flat, same_shape, wide
from pllm.build.passes.step_shape import StepShape
from pllm.build.traced import Traced, argument, value

__all__ = ["small_products"]

_aten, _pllm = torch.ops.aten, torch.ops.pllm


def small_products(traced: Traced, step: StepShape) -> str:
    """Does nothing for steps of more rows."""
    if not step.is_small:
        return "left to the library"
    products = [node for node in traced.calls(_aten.linear.default) if _is_of_a_layer(traced, node)]
    for product in products:
        _fuse(traced, product, step.max_rows)
    return f"{len(products)} products"


def _is_of_a_layer(traced: Traced, product: Node) -> bool:
    """Over all tokens of the step, with a constant weight; the head has only the rows that are sampled from."""
    x, weight = argument(product, 0), argument(product, 1)
    tokens = traced.input("input_ids")
    return weight.name in traced.sources and value(x).ndim == 3 and bool(value(x).shape[1] == value(tokens).shape[0])


def _fuse(traced: Traced, product: Node, max_rows: int) -> None:
    x, weight, bias = argument(product, 0), argument(product, 1), product.args[2] if len(product.args) > 2 else None
    inner = x.args[0] if x.target is _aten.unsqueeze.default else None
    has_norm = isinstance(inner, Node) and inner.target is _pllm.rms_normalize.default and len(x.users) == 1
    rows, *norm = inner.args if isinstance(inner, Node) and has_norm else (None, None, 0.0, 0.0)
    out, residual, gated = product, None, False
    users = list(product.users)
    if len(users) == 1:
        (user,) = users
        if user.target is _aten.squeeze.dim and [each.target for each in user.users] == [_pllm.silu_mul.default]:
            (silu,) = user.users
            (out,) = silu.users  # the view that makes it [1, T, N] again
            gated = True
        elif user.target is _aten.add.Tensor and len(user.args) == 2 and same_shape(*user.args):
            residual, out = user.args[1 if user.args[0] is product else 0], user
    with traced.graph.inserting_before(out):
        rows = flat(traced, x) if rows is None else rows
        other = flat(traced, residual) if isinstance(residual, Node) else None
        args = (rows, weight, bias, norm[0], other, *norm[1:], gated, max_rows)
        fused = wide(traced, call(traced, _pllm.small_linear.default, *args))
    out.replace_all_uses_with(fused)

"""Fuse norms: root-mean-square norms of a layer's rows become a kernel each, with the residual's sum if there is one.

Norms of single heads are left to the pass over cache writes. With few rows the sum is left too: the product that it
comes from takes it (`small_products`).
"""

import torch
from torch.fx import Node

from pllm.build.passes.patterns import RmsNorm, call, flat, item, match_rms_norm, same_shape, wide
from pllm.build.passes.step_shape import StepShape
from pllm.build.traced import Traced, value

__all__ = ["fuse_norms"]

_pllm = torch.ops.pllm


def fuse_norms(traced: Traced, step: object) -> str:
    """``step``: what a program for CUDA is made for; a CPU's is made for steps of any size, and takes sums along."""
    takes_sums = not (isinstance(step, StepShape) and step.is_small)
    norms = sums = 0
    for rsqrt in traced.calls(torch.ops.aten.rsqrt.default):
        norm = match_rms_norm(traced, rsqrt)
        if norm is None or value(norm.x).ndim != 3:
            continue
        terms = _terms(norm.x) if takes_sums else None
        with traced.graph.inserting_before(norm.out):
            normed = _norm(traced, norm) if terms is None else _add_norm(traced, norm, *terms)
        norm.out.replace_all_uses_with(normed)
        norms += 1
        sums += terms is not None
    return f"{norms} norms, {sums} of them with a residual"


def _terms(x: Node) -> tuple[Node, Node] | None:
    """The two tensors that x is the sum of."""
    if x.target is not torch.ops.aten.add.Tensor or x.kwargs or len(x.args) != 2 or not same_shape(*x.args):
        return None
    first, second = x.args
    assert isinstance(first, Node) and isinstance(second, Node)
    return first, second


def _norm(traced: Traced, norm: RmsNorm) -> Node:
    args = (flat(traced, norm.x), norm.weight, norm.eps, norm.weight_offset)
    return wide(traced, call(traced, _pllm.rms_normalize.default, *args))


def _add_norm(traced: Traced, norm: RmsNorm, first: Node, second: Node) -> Node:
    """Before the sum, whose users get the kernel's."""
    with traced.graph.inserting_before(norm.x):
        args = (flat(traced, second), flat(traced, first), norm.weight, norm.eps, norm.weight_offset)
        both = call(traced, _pllm.add_rms_norm.default, *args)
        normed, total = (wide(traced, item(traced, both, index)) for index in (0, 1))
    norm.x.replace_all_uses_with(total)
    return normed

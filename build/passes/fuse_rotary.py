"""Fuse rotary: head norms and the rotary embedding of a layer's queries and keys become one operator on a CPU.

Inductor has them too, but in the calling thread, and works the angles' sines out anew in every layer. What is not found
stays as it is. On CUDA the same is part of the write to the cache (`fuse_cache_writes`).
"""

import torch
from torch.fx import Node

from pllm.build.passes.patterns import call, flat, item, wide
from pllm.build.passes.rotary import both_normed, both_turned, half_angles, untransposed
from pllm.build.traced import Traced, argument

__all__ = ["fuse_rotary"]

_aten, _pllm = torch.ops.aten, torch.ops.pllm


def fuse_rotary(traced: Traced, _: object) -> str:
    angles: dict[Node, Node] = {}
    norms = turns = 0
    layers = traced.calls(_pllm.paged_attention.default)
    for attention in layers:
        q, k = (argument(attention, i) for i in range(2))
        turned = both_turned(q, k)
        heads = [untransposed(node) for node in ((q, k) if turned is None else (turned[0].x, turned[1].x))]
        normed = both_normed(traced, heads)
        rows = heads if normed is None else [each.x for each in normed]
        if (turned is None and normed is None) or any(row is None for row in rows):
            continue
        with traced.graph.inserting_before(attention):
            cos = sin = None
            if turned is not None:
                cos, sin = (half_angles(traced, node, angles) for node in (turned[0].cos, turned[0].sin))
            weights = (None, None) if normed is None else (normed[0].weight, normed[1].weight)
            eps, offset = (0.0, 0.0) if normed is None else (normed[0].eps, normed[0].weight_offset)
            inputs = [flat(traced, row) for row in rows if row is not None]
            made = call(traced, _pllm.norm_rope.default, *inputs, cos, sin, *weights, eps, offset)
            for place in (0, 1):
                result = wide(traced, item(traced, made, place))
                attention.update_arg(place, call(traced, _aten.transpose.int, result, 1, 2))
        norms += normed is not None
        turns += turned is not None
    return f"{len(layers)} layers, {turns} with rotary embedding, {norms} with head norms"

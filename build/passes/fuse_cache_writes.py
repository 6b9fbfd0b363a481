"""Fuse cache writes: what stands before a layer's attention (head norms, rotary embedding) and the write to the KV pool
become one kernel, and attention reads the pool.

What of it is not found stays as it is: then the kernel only writes. All layers share one `token_slots`.
"""

import torch
from torch.fx import Node

from pllm.build.passes.patterns import call, flat, item, wide
from pllm.build.passes.rotary import both_normed, both_turned, half_angles, untransposed
from pllm.build.passes.step_shape import StepShape
from pllm.build.traced import Traced, argument, value

__all__ = ["fuse_cache_writes"]

_aten, _pllm = torch.ops.aten, torch.ops.pllm


def fuse_cache_writes(traced: Traced, step: StepShape) -> str:
    slots: Node | None = None
    angles: dict[Node, Node] = {}
    norms = turns = 0
    layers = traced.calls(_pllm.paged_attention.default)
    for attention in layers:
        q, k, v, kv, table, starts, contexts = (argument(attention, i) for i in range(7))
        sinks, layer, scale, window, softcap = attention.args[7:12]
        if slots is None:
            with traced.graph.inserting_before(layers[0]):
                tokens = call(traced, _aten.sym_size.int, traced.input("input_ids"), 0)
                block_size = int(value(kv).shape[4])
                slots = call(
                    traced, _pllm.token_slots.default, table, starts, contexts, tokens, block_size, step.max_sequences
                )
        turned = both_turned(q, k)
        inputs = (q, k) if turned is None else (turned[0].x, turned[1].x)
        heads = [untransposed(node) for node in inputs]
        normed = both_normed(traced, heads)
        with traced.graph.inserting_before(attention):
            cos = sin = None
            if turned is not None:
                cos, sin = (half_angles(traced, node, angles) for node in (turned[0].cos, turned[0].sin))
                turns += 1
            if normed is not None:
                heads = [each.x for each in normed]
                norms += 1
            rows = [
                flat(traced, call(traced, _aten.transpose.int, node, 1, 2) if head is None else head)
                for node, head in zip((*inputs, v), (*heads, untransposed(v)), strict=True)
            ]
            weights = (None, None) if normed is None else (normed[0].weight, normed[1].weight)
            eps, offset = (0.0, 0.0) if normed is None else (normed[0].eps, normed[0].weight_offset)
            written = call(
                traced, _pllm.norm_rope_write.default, *rows, cos, sin, *weights, kv, slots, layer, eps, offset, False,
                1.0, 1.0,
            )  # fmt: skip
            queries, arrivals = (item(traced, written, index) for index in (0, 1))
            attended = call(
                traced, _pllm.cached_attention.default, queries, kv, table, starts, contexts, sinks, arrivals, layer,
                scale, window, softcap, 1.0, 1.0, step.max_sequences, step.decodes,
            )  # fmt: skip
            out = wide(traced, attended)
        attention.replace_all_uses_with(out)
        traced.graph.erase_node(attention)
    return f"{len(layers)} layers, {turns} with rotary embedding, {norms} with head norms"

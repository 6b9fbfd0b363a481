"""Drop casts that change nothing, to the dtype that a tensor has: what is left of a norm is then its pattern."""

import torch

from pllm.build.traced import Traced, value

__all__ = ["drop_casts"]


def drop_casts(traced: Traced, _: object) -> str:
    count = 0
    for node in [*traced.calls(torch.ops.aten.to.dtype), *traced.calls(torch.ops.aten.to.device)]:
        source = node.all_input_nodes[0]
        if value(source).dtype == value(node).dtype and value(source).device == value(node).device:
            node.replace_all_uses_with(source)
            traced.graph.erase_node(node)
            count += 1
    return f"{count} casts dropped"

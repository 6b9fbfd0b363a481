"""Drop assertions: checks of shapes and dtypes that tracing has already proved, and the runtime checks at its door."""

import torch

from pllm.build.traced import Traced

__all__ = ["drop_assertions"]

_ASSERTIONS = frozenset(
    (
        torch.ops.aten._assert_tensor_metadata.default,
        torch.ops.aten._assert_scalar.default,
        torch.ops.aten._assert_async.msg,
    )
)


def drop_assertions(traced: Traced, _: object) -> str:
    found = [node for node in traced.graph.nodes if node.target in _ASSERTIONS]
    for node in found:
        traced.graph.erase_node(node)
    return f"{len(found)} dropped"

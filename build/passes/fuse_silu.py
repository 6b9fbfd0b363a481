"""Fuse SiLU·mul: silu(gate) * up over the two halves of one product becomes one kernel."""

import torch

from pllm.build.passes.patterns import call, flat, part_of, wide
from pllm.build.traced import Traced, value

__all__ = ["fuse_silu"]

_aten = torch.ops.aten


def fuse_silu(traced: Traced, _: object) -> str:
    """The gate must be the first half: so the kernel has it, and so `merge_linears` and merged checkpoints do."""
    count = 0
    for silu in traced.calls(_aten.silu.default):
        gate, users = part_of(silu.args[0]), list(silu.users)
        if gate is None or len(users) != 1 or users[0].target is not _aten.mul.Tensor:
            continue
        (product,) = users
        up = part_of(next((arg for arg in product.args if arg is not silu), None))
        whole, start, size = gate
        if up != (whole, size, size) or start or value(whole).ndim != 3 or value(whole).shape[-1] != 2 * size:
            continue
        with traced.graph.inserting_before(product):
            fused = wide(traced, call(traced, torch.ops.pllm.silu_mul.default, flat(traced, whole)))
        product.replace_all_uses_with(fused)
        count += 1
    return f"{count} fused"

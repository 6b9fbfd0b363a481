"""Quantize linears: products with int8 or int4 weights, and look-ups in int8 ones.

A table that is looked up in, and a head, which is often the same table, are int8 in either scheme: the rows of rare
tokens matter as much as those of common ones, and the head decides the token.

What the checkpoint has rounded already is kept where it can be stored as it is: int8 with a scale for each output, int4
with scales for groups of inputs, neither with zero points.
"""

from collections import Counter
from collections.abc import Callable

import torch
from torch.fx import Node

from pllm.build.passes.pack_linears import is_linear_weight
from pllm.build.quantized_checkpoint import QuantizedWeight
from pllm.build.traced import Traced, WeightForm, argument, value

__all__ = ["INT4_GROUP", "quantize_linears"]

INT4_GROUP = 32


_Stored = Callable[[str], QuantizedWeight | None]


def quantize_linears(
    traced: Traced,
    storage: torch.dtype,  # noqa: ARG001  (a pass takes both)
    *,
    form: WeightForm,
    stored: _Stored = lambda _: None,
) -> str:
    """What has no weight that qualifies is left to the packing pass. ``stored``: a parameter as the checkpoint has
    rounded it."""
    head = _head(traced)
    counts: Counter[WeightForm] = Counter()
    kept, rounded_again = 0, Counter[str]()
    for weight in [node for node in traced.graph.nodes if is_linear_weight(traced, node)]:
        users = list(weight.users)
        rows, columns = value(weight).shape
        is_table = any(user.target is torch.ops.aten.embedding.default for user in users) or weight is head
        chosen = WeightForm.INT8 if is_table or columns % INT4_GROUP else form
        group, obstacle = _as_stored(traced.sources[weight.name].parts, chosen, stored)
        scale = traced.quantize(weight, chosen, group or INT4_GROUP, kept=group is not None)
        counts[chosen] += 1
        kept += group is not None
        if obstacle is not None:
            rounded_again[obstacle] += 1
        for user in users:
            if user.target is torch.ops.aten.embedding.default:
                user.target, user.kwargs = torch.ops.pllm.quantized_embedding.default, {}
                user.args = (argument(user, 1), weight, scale, columns)
            else:
                bias = user.args[2] if len(user.args) > 2 else None
                user.target = torch.ops.pllm.quantized_linear.default
                user.args = (argument(user, 0), weight, scale, bias, rows)
    said = f"{counts[WeightForm.INT8]} weights in int8, {counts[WeightForm.INT4]} in int4"
    said += f", {kept} of them as the checkpoint has rounded them" if kept else ""
    return said + "".join(f"; {count} rounded again: {reason}" for reason, count in rounded_again.items())


def _as_stored(parts: tuple[str, ...], form: WeightForm, stored: _Stored) -> tuple[int | None, str | None]:
    """The group of inputs that share a scale where the checkpoint's own numbers can be stored in that form; else why
    they cannot, of a weight that it has rounded."""
    found = [stored(part) for part in parts]
    weights = [weight for weight in found if weight is not None]
    if not weights:
        return None, None
    if len(weights) < len(found) or len({(weight.bits, weight.group) for weight in weights}) > 1:
        return None, "it is merged with one that is rounded otherwise"
    reason = next((weight.obstacle for weight in weights if weight.obstacle), None) or _misfit(weights[0], form)
    return (None, reason) if reason else (weights[0].group, None)


def _misfit(weight: QuantizedWeight, form: WeightForm) -> str | None:
    bits = 4 if form is WeightForm.INT4 else 8
    if weight.bits != bits:
        return f"it has {weight.bits} bits, and {bits} are stored"
    if bits == 8 and weight.group != weight.columns:
        return f"int8 is stored with a scale for each output, and it has one for {weight.group} inputs"
    return f"groups of {weight.group} inputs are no multiple of 8" if bits == 4 and weight.group % 8 else None


def _head(traced: Traced) -> Node | None:
    """The weight of the last product of the graph."""
    products = traced.calls(torch.ops.aten.linear.default)
    return argument(products[-1], 1) if products else None

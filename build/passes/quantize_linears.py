"""Quantize linears: products with int8 or int4 weights, and look-ups in int8 ones.

A table that is looked up in, and a head, which is often the same table, are int8 in either scheme: the rows of rare
tokens matter as much as those of common ones, and the head decides the token.

What the checkpoint has rounded already is kept where it can be stored as it is: int8 with a scale for each output and
without zero points, int4 with scales for groups of inputs. The zero points of int4 make a small product of their own:

    sum over k of (q - zero) * scale * x  =  sum of q * scale * x  +  sum over groups of (-zero * scale) * (sum of x)
"""

from collections import Counter
from collections.abc import Callable

import torch
from torch.fx import Node

from pllm.build.passes.pack_linears import is_linear_weight
from pllm.build.passes.patterns import call
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
    kept = offsets = 0
    rounded_again: Counter[str] = Counter()
    for weight in [node for node in traced.graph.nodes if is_linear_weight(traced, node)]:
        users = list(weight.users)
        rows, columns = value(weight).shape
        is_table = any(user.target is torch.ops.aten.embedding.default for user in users) or weight is head
        chosen = WeightForm.INT8 if is_table or columns % INT4_GROUP else form
        parts = traced.sources[weight.name].parts
        group, obstacle = _as_stored(parts, chosen, stored)
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
        if group is not None and chosen is WeightForm.INT4 and _has_zeros(parts, stored):
            _add_offsets(traced, weight, traced.offset(weight, rows, columns // group), group)
            offsets += 1
    said = f"{counts[WeightForm.INT8]} weights in int8, {counts[WeightForm.INT4]} in int4"
    said += f", {kept} of them as the checkpoint has rounded them" if kept else ""
    said += f", {offsets} with zero points" if offsets else ""
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
    reasons = [weight.obstacle or _misfit(weight, form) for weight in weights]
    reason = next(filter(None, reasons), None)
    return (None, reason) if reason else (weights[0].group, None)


def _misfit(weight: QuantizedWeight, form: WeightForm) -> str | None:
    bits = 4 if form is WeightForm.INT4 else 8
    if weight.bits != bits:
        return f"it has {weight.bits} bits, and {bits} are stored"
    if bits == 8 and weight.zero is not None:
        return "it has zero points"
    if bits == 8 and weight.group != weight.columns:
        return f"int8 is stored with a scale for each output, and it has one for {weight.group} inputs"
    return f"groups of {weight.group} inputs are no multiple of 8" if bits == 4 and weight.group % 8 else None


def _has_zeros(parts: tuple[str, ...], stored: _Stored) -> bool:
    return any(weight is not None and weight.zero is not None for weight in map(stored, parts))


def _add_offsets(traced: Traced, weight: Node, offset: Node, group: int) -> None:
    aten = torch.ops.aten
    for product in list(weight.users):
        x, bias, rows = argument(product, 0), product.args[3], product.args[4]
        users = list(product.users)
        product.args = (*product.args[:3], None, rows)
        with traced.graph.inserting_before(product):
            parted = call(traced, aten.unflatten.int, x, -1, [int(value(x).shape[-1]) // group, group])
            sums = call(traced, aten.sum.dim_IntList, parted, [-1])
            offsets = call(traced, torch.ops.pllm.packed_linear.default, sums, offset, bias, rows)
        with traced.graph.inserting_after(product):
            whole = call(traced, aten.add.Tensor, product, offsets)
        for user in users:
            user.replace_input_with(product, whole)


def _head(traced: Traced) -> Node | None:
    """The weight of the last product of the graph."""
    products = traced.calls(torch.ops.aten.linear.default)
    return argument(products[-1], 1) if products else None

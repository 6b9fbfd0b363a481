"""What stands between a layer's projections and its attention: norms of single heads and rotary embeddings."""

from dataclasses import dataclass

import torch
from torch.fx import Node

from pllm.build.passes.patterns import RmsNorm, call, match_rms_norm, without_casts
from pllm.build.traced import Traced, argument, value

__all__ = ["Turned", "both_normed", "both_turned", "half_angles", "untransposed"]

_aten = torch.ops.aten


@dataclass(frozen=True, slots=True)
class Turned:
    """A rotary embedding's input [1, H, T, D], and its angles [1, T, D]."""

    x: Node
    cos: Node
    sin: Node


def both_turned(q: Node, k: Node) -> tuple[Turned, Turned] | None:
    first, second = _turned(q), _turned(k)
    if first is None or second is None or (first.cos, first.sin) != (second.cos, second.sin):
        return None
    return first, second


def _turned(node: Node) -> Turned | None:
    """x * cos + cat(-x[D/2:], x[:D/2]) * sin, the angles the same for all heads, each half of them the same."""
    if node.target is not _aten.add.Tensor:
        return None
    straight, crossed = (without_casts(arg) for arg in node.args[:2])
    if not all(isinstance(each, Node) and each.target is _aten.mul.Tensor for each in (straight, crossed)):
        return None
    assert isinstance(straight, Node) and isinstance(crossed, Node)
    x, swapped = argument(straight, 0), argument(crossed, 0)
    if swapped.target is not _aten.cat.default or not isinstance(swapped.args[0], list | tuple):
        return None
    half = value(x).shape[-1] // 2
    pieces = list(swapped.args[0])
    if len(pieces) != 2 or not isinstance(pieces[0], Node) or pieces[0].target is not _aten.neg.default:
        return None
    ends = [_piece(piece, x) for piece in (pieces[0].args[0], pieces[1])]
    cos, sin = (_angles(each.args[1]) for each in (straight, crossed))
    if ends != [(half, 2 * half), (0, half)] or cos is None or sin is None:
        return None
    return Turned(x, cos, sin)


def _piece(node: object, x: Node) -> tuple[int, int] | None:
    """Where a slice of x's last dimension begins and ends."""
    if not isinstance(node, Node) or node.target is not _aten.slice.Tensor or node.args[0] is not x:
        return None
    _, dim, start, end = node.args
    if dim not in (-1, value(x).ndim - 1) or not isinstance(start, int) or not isinstance(end, int):
        return None
    return start, min(end, int(value(x).shape[-1]))


def _angles(node: object) -> Node | None:
    """[1, T, D] of [1, 1, T, D], where both halves of D are one and the same: a cat of a tensor with itself."""
    if not isinstance(node, Node) or node.target is not _aten.unsqueeze.default or node.args[1] != 1:
        return None
    angles = without_casts(node.args[0])
    inner = angles
    while isinstance(inner, Node) and inner.target in (_aten.mul.Tensor, _aten.cos.default, _aten.sin.default):
        inner = without_casts(inner.args[0])
    if not isinstance(inner, Node) or inner.target is not _aten.cat.default or not isinstance(angles, Node):
        return None
    joined = inner.args[0]
    same = isinstance(joined, list | tuple) and len(joined) == 2 and joined[0] is joined[1]
    return angles if same else None


def half_angles(traced: Traced, node: Node, made: dict[Node, Node]) -> Node:
    """[T, D / 2] of [1, T, D], made once for all layers, where the angles stand."""
    if node not in made:
        with traced.graph.inserting_after(node):
            rows = call(traced, _aten.squeeze.dim, node, 0)
        with traced.graph.inserting_after(rows):
            made[node] = call(traced, _aten.slice.Tensor, rows, -1, 0, int(value(node).shape[-1]) // 2)
    return made[node]


def untransposed(node: Node) -> Node | None:
    """[1, T, H, D], where a node is its transposition."""
    return argument(node, 0) if node.target is _aten.transpose.int and set(node.args[1:]) == {1, 2} else None


def both_normed(traced: Traced, heads: list[Node | None]) -> tuple[RmsNorm, RmsNorm] | None:
    norms = [match_rms_norm(traced, rsqrt) for rsqrt in traced.calls(_aten.rsqrt.default)]
    found = {norm.out: norm for norm in norms if norm is not None}
    q, k = (None if head is None else found.get(head) for head in heads)
    if q is None or k is None or value(q.x).ndim != 4 or (q.eps, q.weight_offset) != (k.eps, k.weight_offset):
        return None
    return q, k

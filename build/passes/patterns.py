"""What several passes look for in a traced graph, and how they write what they put in its place."""

import operator
from dataclasses import dataclass
from typing import TypeGuard

import torch
from torch._dispatch.python import enable_python_dispatcher
from torch.fx import Node
from torch.fx.node import Argument, map_arg

from pllm.build.traced import Traced, argument, value

__all__ = [
    "CASTS",
    "RmsNorm",
    "call",
    "flat",
    "item",
    "match_rms_norm",
    "part_of",
    "same_shape",
    "sole_user",
    "wide",
    "with_value",
    "without_casts",
]

_aten = torch.ops.aten
CASTS = frozenset((_aten.to.dtype, _aten._to_copy.default, _aten.type_as.default))
_END = 2**63 - 1


def call(traced: Traced, target: torch._ops.OpOverload, *args: Argument) -> Node:
    """A call at the graph's insertion point, with its example value, as tracing gives one."""
    return with_value(traced, traced.graph.call_function(target, args))


def with_value(traced: Traced, node: Node) -> Node:
    """A call, whose example value is computed anew from those of its arguments."""
    assert callable(node.target)
    args, kwargs = map_arg((node.args, node.kwargs), lambda each: each.meta["val"])
    # torch 2.11 decomposes some operators in C++ otherwise, which takes no symbolic sizes.
    with enable_python_dispatcher(), traced.fake_mode:
        node.meta["val"] = node.target(*args, **kwargs)
    return node


def item(traced: Traced, node: Node, index: int) -> Node:
    """One of the results of a call that has several."""
    found = traced.graph.call_function(operator.getitem, (node, index))
    found.meta["val"] = node.meta["val"][index]
    return found


def flat(traced: Traced, node: Node) -> Node:
    """[T, ...] of the model's [1, T, ...]: a view, or what it was a view of."""
    if node.target is _aten.unsqueeze.default and node.args[1] == 0:
        (inner, _) = node.args
        assert isinstance(inner, Node)
        return inner
    return call(traced, _aten.squeeze.dim, node, 0)


def wide(traced: Traced, node: Node) -> Node:
    """[1, T, ...], as the model's own nodes have it."""
    return call(traced, _aten.unsqueeze.default, node, 0)


def without_casts(node: object) -> object:
    """What a chain of casts began with."""
    while isinstance(node, Node) and node.target in CASTS:
        node = node.args[0]
    return node


def sole_user(node: Node) -> Node | None:
    """The one node that uses it, casts passed over; None where others do too."""
    while len(node.users) == 1:
        (user,) = node.users
        if user.target not in CASTS:
            return user
        node = user
    return None


def same_shape(first: object, second: object) -> bool:
    """Whether both are nodes that stand for tensors of one shape."""
    if not isinstance(first, Node) or not isinstance(second, Node):
        return False
    shapes = [each.meta["val"].shape for each in (first, second) if isinstance(each.meta.get("val"), torch.Tensor)]
    return len(shapes) == 2 and len(shapes[0]) == len(shapes[1]) and all(a == b for a, b in zip(*shapes, strict=True))


def part_of(node: object) -> tuple[Node, int, int] | None:
    """(whole, start, size) where a node is a part of another's last dimension, cut by slice, split or chunk."""
    if not isinstance(node, Node):
        return None
    if node.target is _aten.slice.Tensor and len(node.args) == 4:
        whole, dim, start, end = node.args
        if isinstance(whole, Node) and isinstance(start, int) and isinstance(end, int) and _is_last(whole, dim):
            size = value(whole).shape[-1]
            return whole, start, min(end, int(size)) - start
    if node.target is operator.getitem:
        cut, index = node.args
        if isinstance(cut, Node) and isinstance(index, int) and _cuts_last(cut):
            parts = cut.meta["val"]
            whole = cut.args[0]
            assert isinstance(whole, Node)
            return whole, sum(int(part.shape[-1]) for part in parts[:index]), int(parts[index].shape[-1])
    return None


def _cuts_last(cut: Node) -> bool:
    targets = (_aten.chunk.default, _aten.split.Tensor, _aten.split_with_sizes.default)
    dim = cut.args[2] if len(cut.args) > 2 else cut.kwargs.get("dim", 0)
    return cut.target in targets and isinstance(cut.args[0], Node) and _is_last(cut.args[0], dim)


def _is_last(whole: Node, dim: object) -> bool:
    return dim in (-1, value(whole).ndim - 1)


@dataclass(frozen=True, slots=True)
class RmsNorm:
    """A root-mean-square norm, as transformers writes it."""

    x: Node
    weight: Node
    eps: float
    weight_offset: float
    """1 where the model multiplies by 1 + weight."""
    out: Node
    """What the rest of the graph uses, in x's dtype."""


def match_rms_norm(traced: Traced, rsqrt: Node) -> RmsNorm | None:
    """The norm around `rsqrt(mean(x ** 2) + eps)`: times weight after a cast (Llama), or 1 + weight before (Gemma)."""
    squared = _mean_square(rsqrt.args[0])
    scaled = sole_user(rsqrt)
    if squared is None or scaled is None or scaled.target is not _aten.mul.Tensor:
        return None
    widened, eps = squared
    out = sole_user(scaled)
    if _other(scaled, rsqrt) is not widened or out is None or out.target is not _aten.mul.Tensor:
        return None
    x = argument(widened, 0) if widened.target in CASTS and value(widened).dtype == torch.float32 else widened
    factors = [without_casts(factor) for factor in out.args[:2]]
    weight, offset = _weight(traced, next((each for each in factors if each is not scaled), None))
    ends = _in_dtype_of(x, out)
    return None if weight is None or ends is None else RmsNorm(x, weight, eps, offset, ends)


def _mean_square(shifted: object) -> tuple[Node, float] | None:
    """(x, eps) of mean(x ** 2) + eps, over the last dimension."""
    if not _is_call(shifted, _aten.add.Tensor):
        return None
    mean, eps = shifted.args[:2]
    if not _is_call(mean, _aten.mean.dim) or not isinstance(eps, float) or mean.args[1] not in ([-1], (-1,)):
        return None
    square = mean.args[0]
    if not _is_call(square, _aten.pow.Tensor_Scalar) or square.args[1] != 2:
        return None
    return argument(square, 0), eps


def _in_dtype_of(x: Node, out: Node) -> Node | None:
    """`out`, or the one cast of it to x's dtype: Gemma multiplies by the weight first."""
    if value(out).dtype == value(x).dtype:
        return out
    casts = [user for user in out.users if user.target in CASTS and value(user).dtype == value(x).dtype]
    return casts[0] if len(casts) == len(out.users) == 1 else None


def _weight(traced: Traced, node: object) -> tuple[Node | None, float]:
    """A constant vector, and what is added to it."""
    offset = 0.0
    if _is_call(node, _aten.add.Tensor):
        numbers = [arg for arg in node.args if isinstance(arg, int | float)]
        if len(numbers) != 1:
            return None, 0.0
        offset = float(numbers[0])
        node = without_casts(next(arg for arg in node.args if isinstance(arg, Node)))
    if isinstance(node, Node) and node.name in traced.sources and value(node).ndim == 1:
        return node, offset
    return None, 0.0


def _other(product: Node, factor: Node) -> object:
    first, second = product.args[:2]
    return second if first is factor else first


def _is_call(node: object, target: torch._ops.OpOverload) -> TypeGuard[Node]:
    return isinstance(node, Node) and node.target is target

"""Select rows: what a model computes for every token, only to take the rows whose logits are wanted, is computed for
those rows alone.

transformers takes the rows (`logits_to_keep`) before the head. What precedes it, up to the last attention, treats each
token by itself: the last output projection, the MLP, norms and sums. So the selection moves up, to what attention gives
and to the residual. This comes after the other passes, which leave few kinds of nodes. A step that decodes wants nearly
all of its rows, and pays a copy of them.

A symbol stands for the number of tokens, and no other size has it: it tells where in a tensor the rows are. Results are
the same bits, since our operators and loops over elements compute a row the same whatever stands beside it; only sums
that Inductor writes itself, those of a LayerNorm for one, may be added in another order.
"""

import operator
from collections.abc import Iterator
from math import prod
from typing import Any, NamedTuple

import torch
from torch.fx import Node
from torch.fx.node import Argument

from pllm.build.passes.patterns import CASTS, call, with_value
from pllm.build.traced import Traced, argument, value

__all__ = ["select_rows"]

_aten = torch.ops.aten

_PRODUCTS = frozenset(("aten::linear", "pllm::packed_linear", "pllm::quantized_linear", "pllm::quantized_gated_linear"))

_ALONG_LAST = _PRODUCTS | {"aten::layer_norm", "pllm::rms_normalize", "pllm::add_rms_norm", "pllm::silu_mul"}
"""They compute with the last dimension, for each index of the others. By name: ours are defined only when a model is
traced."""

_BY_ELEMENT = CASTS | {_aten.alias.default, _aten.contiguous.default, _aten.cat.default, operator.getitem}
"""Besides what torch itself calls pointwise. Joining along the rows would change how many there are."""

_MAY_SHARE = CASTS | {_aten.dropout.default, operator.getitem}
"""They may give the memory that they took, besides those whose schema says so."""

_VIEWS = frozenset((_aten.view.default, _aten.reshape.default, _aten._unsafe_view.default))

_OF_DIMENSIONS = frozenset(
    (
        _aten.squeeze.dim,
        _aten.unsqueeze.default,
        _aten.transpose.int,
        _aten.permute.default,
        _aten.select.int,
        _aten.slice.Tensor,
        _aten.split.Tensor,
        _aten.split_with_sizes.default,
        _aten.chunk.default,
        _aten.mean.dim,
        _aten.sum.dim_IntList,
    )
)
"""They order, cut or add up dimensions: one that has its size afterwards was neither cut nor added up."""


def select_rows(traced: Traced, _: object) -> str:
    rows = _Rows(traced, traced.input("logits_index"))
    selections = list(rows.selections())
    moved = _movable(traced, rows, selections)
    for node in [node for node in traced.graph.nodes if node in moved]:
        rows.move(node)
    for node in selections:
        if argument(node, 0) in moved:
            node.replace_all_uses_with(rows.of(argument(node, 0)))
            traced.graph.erase_node(node)
    for node in [node for node in reversed(traced.graph.nodes) if node in moved]:
        traced.graph.erase_node(node)  # what may be random, as a dropout that drops nothing, is never taken for unused
    products = sum(_name(node) in _PRODUCTS for node in moved)
    origins = " and ".join(sorted({_name(_call_of(node)) for node in rows.selected}))
    return f"{len(moved)} nodes, {products} of them products, for the wanted rows of {origins or 'no node'}"


def _movable(traced: Traced, rows: "_Rows", selections: list[Node]) -> set[Node]:
    """What treats rows apart, and is used only where it is selected from, or by what is moved itself: what others use
    would be computed twice."""
    below = set(selections)
    for node in reversed(traced.graph.nodes):
        if node.users and below.issuperset(node.users) and rows.stay_apart(node):
            below.add(node)
    # One of several results cannot move without the call.
    stay = {node for node in below if _call_of(node) not in below}
    return below - stay - set(selections)


def _call_of(node: Node) -> Node:
    return argument(node, 0) if node.target is operator.getitem else node


class _Place(NamedTuple):
    """Of the dimension that counts tokens: how many stand before and after it."""

    before: int
    after: int


class _Rows:
    """The wanted rows of a graph's values."""

    def __init__(self, traced: Traced, index: Node) -> None:
        self.selected: list[Node] = []
        """What rows are taken from."""
        self._traced = traced
        self._index = index
        tokens: Any = value(traced.input("input_ids")).shape[0]
        self._tokens = tokens.node.expr
        self._rows: dict[Node, Node] = {}
        self._changed = {_owner(each) for node in traced.graph.nodes for each in _changed_by(node)}
        """What calls change in place: there their order matters, so that nothing moves."""

    def selections(self) -> Iterator[Node]:
        """The calls that take the wanted rows of a tensor: `x[:, index]`."""
        for node in self._index.users:
            if node.target is _aten.index.Tensor:
                place = self._place(argument(node, 0))
                if place is not None and node.args[1] == [*[None] * place.before, self._index]:
                    yield node

    def stay_apart(self, node: Node) -> bool:
        """Whether a row of what the call gives depends on the same row of what it takes, and on what all rows share."""
        place = self._place(node)
        return (
            node.op == "call_function"
            and place is not None
            and all(self._is_shared(each) or self._goes_through(node, place, each) for each in node.all_input_nodes)
        )

    def move(self, node: Node) -> None:
        """Write the call for the wanted rows, beside the one for all."""
        with self._traced.graph.inserting_before(node):
            arguments = {each: self.of(each) for each in node.all_input_nodes}
            self._rows[node] = with_value(self._traced, self._traced.graph.node_copy(node, arguments.__getitem__))

    def of(self, node: Node) -> Node:
        """The wanted rows of a node's value; where it is a number of rows, theirs."""
        if node in self._rows or self._is_shared(node):
            return self._rows.get(node, node)
        if not isinstance(node.meta["val"], torch.Tensor):
            self._rows[node] = call(self._traced, _aten.sym_size.int, self._index, 0)
        else:
            place = self._place(node)
            assert place is not None, node.format_node()
            index: list[Argument] = [*[None] * place.before, self._index]
            self._rows[node] = call(self._traced, _aten.index.Tensor, node, index)
            self.selected.append(node)
        return self._rows[node]

    def _goes_through(self, node: Node, place: _Place, taken: Node) -> bool:
        """Whether the rows of an argument become those of the result, each by itself."""
        if _owner(taken) in self._changed:
            return False
        target, came = node.target, self._place(taken)
        if came is None:
            return target in _VIEWS and self._is_count(taken.meta["val"])
        if target in _VIEWS:
            sizes = [value(taken).shape[: came.before], value(node).shape[: place.before]]
            return all(isinstance(size, int) for each in sizes for size in each) and prod(sizes[0]) == prod(sizes[1])
        if _name(node) in _ALONG_LAST:
            return came.before == place.before and came.after > 0 < place.after
        if target is _aten.dropout.default:
            return node.args[2] is False
        return target in _OF_DIMENSIONS or (_is_by_element(node) and came.after == place.after)

    def _place(self, node: Node) -> _Place | None:
        """Where a call's results have their rows, which must be the same place in all, and the only one."""
        given = node.meta.get("val")
        results = given if isinstance(given, tuple | list) else (given,)
        places = set()
        for each in results:
            sizes = each.shape if isinstance(each, torch.Tensor) else ()
            found = [i for i, size in enumerate(sizes) if self._depends(size)]
            if len(found) != 1 or not self._is_count(sizes[found[0]]):
                return None
            places.add(_Place(found[0], len(sizes) - found[0] - 1))
        return places.pop() if len(places) == 1 else None

    def _is_shared(self, node: Node) -> bool:
        """Whether a value has nothing to do with how many tokens there are."""
        given = node.meta.get("val")
        results = given if isinstance(given, tuple | list) else (given,)
        return not any(
            self._depends(size)
            for each in results
            for size in (each.shape if isinstance(each, torch.Tensor) else (each,))
        )

    def _is_count(self, size: object) -> bool:
        return isinstance(size, torch.SymInt) and size.node.expr == self._tokens

    def _depends(self, size: object) -> bool:
        return isinstance(size, torch.SymInt) and self._tokens in size.node.expr.free_symbols


def _name(node: Node) -> str:
    """An operator's, without its overload."""
    return node.target.name().partition(".")[0] if isinstance(node.target, torch._ops.OpOverload) else node.name


def _is_by_element(node: Node) -> bool:
    if node.target in _BY_ELEMENT:
        return True
    tags = node.target.tags if isinstance(node.target, torch._ops.OpOverload) else ()
    return torch.Tag.pointwise in tags and torch.Tag.nondeterministic_seeded not in tags and not _changed_by(node)


def _changed_by(node: Node) -> list[Node]:
    """The arguments that a call changes in place."""
    if not isinstance(node.target, torch._ops.OpOverload):
        return []
    given = zip(node.target._schema.arguments, node.args, strict=False)
    return [each for info, each in given if info.is_write and isinstance(each, Node)]


def _owner(node: Node) -> Node:
    """The call that made the memory in which a node's value lies, or may lie."""
    while node.target in _MAY_SHARE or (
        isinstance(node.target, torch._ops.OpOverload) and any(each.alias_info for each in node.target._schema.returns)
    ):
        node = node.all_input_nodes[0]
    return node

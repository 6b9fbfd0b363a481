"""Merge linears that share an input: query, key and value; gate and up. One product reads x once and splits less."""

import operator
from functools import reduce

import torch
from torch._dispatch.python import enable_python_dispatcher
from torch.fx import Node
from torch.fx.node import Argument

from pllm.build.traced import Traced, argument, value

__all__ = ["merge_linears"]


def merge_linears(traced: Traced, _: object) -> str:
    groups: dict[Node, list[Node]] = {}
    for node in traced.calls(torch.ops.aten.linear.default):
        if argument(node, 1).name in traced.sources:
            groups.setdefault(argument(node, 0), []).append(node)
    merged = 0
    for group in groups.values():
        biases = {len(node.args) > 2 and node.args[2] is not None for node in group}
        if len(group) > 1 and len(biases) == 1:
            _merge(traced, group, has_bias=biases.pop())
            merged += 1
    return f"{merged} groups merged"


def _merge(traced: Traced, group: list[Node], *, has_bias: bool) -> None:
    x = argument(group[0], 0)
    merging = [[argument(node, i) for node in group] for i in range(1, 3 if has_bias else 2)]
    constants = [traced.merge(nodes, _name(traced, nodes)) for nodes in merging]
    with traced.graph.inserting_before(group[0]):
        whole = _call(traced, torch.ops.aten.linear.default, (x, *constants))
        start = 0
        for node in group:
            size = value(argument(node, 1)).shape[0]
            part = _call(traced, torch.ops.aten.slice.Tensor, (whole, -1, start, start + size))
            node.replace_all_uses_with(part)
            start += size
    for node in group:
        traced.graph.erase_node(node)


def _call(traced: Traced, target: torch._ops.OpOverload, args: tuple[Argument, ...]) -> Node:
    node = traced.graph.call_function(target, args)
    values = [value(arg) if isinstance(arg, Node) else arg for arg in args]
    # As tracing does: torch 2.11 decomposes linear in C++ otherwise, which takes no symbolic sizes.
    with enable_python_dispatcher(), traced.fake_mode:
        node.meta["val"] = target(*values)
    return node


def _name(traced: Traced, constants: list[Node]) -> str:
    """``layers.0.self_attn.q_proj_k_proj_v_proj.weight``: what they share, and what they do not, joined."""
    names = [traced.names()[node.name].split(".") for node in constants]
    shared = reduce(operator.and_, (set(enumerate(name)) for name in names))
    return ".".join(
        term if (i, term) in shared else "_".join(name[i] for name in names) for i, term in enumerate(names[0])
    )

"""A traced model: the exported graph, and where each of its constants comes from.

Passes edit the graph and this book together. A constant's values are never needed before they are written to the
artifact, so a model is traced, rewritten and compiled without its weights having been read.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind, InputSpec, TensorArgument
from torch.fx import Graph, Node

from pllm.kernels.packing import packed_shape

__all__ = ["ConstantSource", "Traced", "argument", "value"]


@dataclass(frozen=True, slots=True)
class ConstantSource:
    """How a constant of the graph is made of the checkpoint's tensors."""

    parts: tuple[str, ...]
    """Parameters or buffers of the model, joined along their first dimension."""
    packed: bool = False
    """Stored in the packed layout of a linear weight (`kernels/packing.py`)."""
    transposed: bool = False
    """The checkpoint has [..., K, N] where packing takes [..., N, K]."""
    dtype: torch.dtype = torch.float32


def argument(node: Node, index: int) -> Node:
    """A positional argument that is a node itself, as a call's tensors are."""
    found = node.args[index]
    assert isinstance(found, Node), f"argument {index} of {node.format_node()}"
    return found


def value(node: Node) -> torch.Tensor:
    """The example value of a node that stands for a tensor: its shape and dtype, and nothing behind them."""
    found = node.meta["val"]
    assert isinstance(found, torch.Tensor), f"the value of {node.format_node()}"
    return found


class Traced:
    """An exported program under edit. Constants are placeholders of the graph, known here by the name of their node."""

    def __init__(self, program: ExportedProgram, sources: dict[str, ConstantSource]) -> None:
        self.program = program
        self.sources = sources
        self.fake_mode: FakeTensorMode = next(iter(self.graph.nodes)).meta["val"].fake_mode
        """The mode that the graph's example values live in."""

    @property
    def graph(self) -> Graph:
        graph: Graph = self.program.graph_module.graph
        return graph

    def names(self) -> dict[str, str]:
        """The constants' qualified names in the program, by node name, in the program's order."""
        kinds = (InputKind.PARAMETER, InputKind.BUFFER)
        specs = self.program.graph_signature.input_specs
        return {spec.arg.name: str(spec.target) for spec in specs if spec.kind in kinds}

    def calls(self, target: object) -> list[Node]:
        return [node for node in self.graph.nodes if node.op == "call_function" and node.target is target]

    def merge(self, constants: Sequence[Node], name: str) -> Node:
        """A new constant that joins existing ones along their first dimension; they go when nothing uses them."""
        first = value(constants[0])
        rows = sum(value(node).shape[0] for node in constants)
        parts = tuple(part for node in constants for part in self.sources[node.name].parts)
        with self.graph.inserting_before(next(iter(self.graph.nodes))):
            node = self.graph.placeholder(name.replace(".", "_"))
        with self.fake_mode:
            node.meta["val"] = torch.empty((rows, *first.shape[1:]), dtype=first.dtype)
        spec = InputSpec(InputKind.BUFFER, TensorArgument(name=node.name), name, persistent=True)
        self.program.graph_signature.input_specs.insert(0, spec)
        self.sources[node.name] = ConstantSource(parts)
        self._allocate(node)
        return node

    def pack(self, constant: Node, dtype: torch.dtype, *, transposed: bool = False) -> None:
        """Declare a weight [..., N, K] (or `transposed`, [..., K, N]) to be stored packed, in that dtype."""
        given = value(constant)
        shape = packed_shape(*(given.transpose(-2, -1) if transposed else given).shape)
        with self.fake_mode:
            constant.meta["val"] = torch.empty(shape, dtype=dtype)
        self.sources[constant.name] = replace(
            self.sources[constant.name], packed=True, dtype=dtype, transposed=transposed
        )
        self._allocate(constant)

    def drop_unused(self) -> None:
        """Remove what no output depends on, constants too."""
        self.graph.eliminate_dead_code()
        names = self.names()
        for node in [node for node in self.graph.nodes if node.op == "placeholder" and node.name in names]:
            if not node.users:
                self.graph.erase_node(node)
                self.program.state_dict.pop(names[node.name], None)
                self.program.constants.pop(names[node.name], None)
                self.sources.pop(node.name)
                specs = self.program.graph_signature.input_specs
                specs[:] = [spec for spec in specs if spec.arg.name != node.name]
        self.graph.lint()
        self.program.graph_module.recompile()

    def _allocate(self, node: Node) -> None:
        """torch wants a tensor behind each constant; this one is address space that nothing ever touches."""
        tensor = torch.empty(tuple(value(node).shape), dtype=value(node).dtype)
        name = self.names()[node.name]
        kind = next(spec.kind for spec in self.program.graph_signature.input_specs if spec.arg.name == node.name)
        parameter = kind is InputKind.PARAMETER
        self.program.state_dict[name] = torch.nn.Parameter(tensor, requires_grad=False) if parameter else tensor

"""A traced model: the exported graph, and where each of its constants comes from.

Passes edit the graph and this book together. A constant's values are never needed before they are written to the
artifact, so a model is traced, rewritten and compiled without its weights having been read.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import Enum

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind, InputSpec, TensorArgument
from torch.fx import Graph, Node
from torch.utils._pytree import tree_map_only

from pllm.kernels.packing import PANEL, packed_shape
from pllm.kernels.quantization import int4_shape, quantized_shape

__all__ = ["ConstantSource", "Traced", "WeightForm", "argument", "value"]


class WeightForm(Enum):
    """How a constant is stored."""

    PLAIN = "as the model has it"
    PACKED = "in the packed layout of a linear weight (`kernels/packing.py`)"
    INT8 = "int8, packed (`kernels/quantization.py`)"
    INT8_SCALE = "the scales of an int8 weight"
    INT4 = "int4, packed"
    INT4_SCALE = "the scales of an int4 weight"
    INT4_OFFSET = (
        "what an int4 weight's zero points add for the sum of each group of inputs: packed, float32 [N, groups]"
    )
    OUTPUT_SCALE = "the scales of a weight whose product is scaled afterwards"


@dataclass(frozen=True, slots=True)
class ConstantSource:
    """How a constant of the graph is made of the checkpoint's tensors."""

    parts: tuple[str, ...]
    """Parameters or buffers of the model, joined along their first dimension."""
    form: WeightForm = WeightForm.PLAIN
    group: int = 0
    """Of an int4 weight: how many inputs share a scale."""
    transposed: bool = False
    """The checkpoint has [..., K, N] where packing takes [..., N, K]."""
    kept: bool = False
    """The whole numbers and scales are the checkpoint's own."""
    gates_alternate: bool = False
    """The first half of the rows, gates, and the second take turns (`quantization.alternate_gates`)."""
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

    def input(self, name: str) -> Node:
        """An input of the program by its name. Raises StopIteration where it has none."""
        found: Node = next(node for node in self.graph.nodes if node.op == "placeholder" and node.name == name)
        return found

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
        self.sources[node.name] = ConstantSource(parts, dtype=first.dtype)
        self._allocate(node)
        return node

    def pack(self, constant: Node, dtype: torch.dtype, *, transposed: bool = False) -> None:
        """Declare a weight [..., N, K] (or `transposed`, [..., K, N]) to be stored packed, in that dtype."""
        given = value(constant)
        shape = packed_shape(*(given.transpose(-2, -1) if transposed else given).shape)
        with self.fake_mode:
            constant.meta["val"] = torch.empty(shape, dtype=dtype)
        self.sources[constant.name] = replace(
            self.sources[constant.name], form=WeightForm.PACKED, dtype=dtype, transposed=transposed
        )
        self._allocate(constant)

    def pack_unscaled(self, constant: Node, dtype: torch.dtype) -> Node:
        """Declare a weight [N, K] to be stored packed as the checkpoint has it, without its scales; the new constant of
        these, float32 [N], for the product."""
        rows = int(value(constant).shape[0])
        self.pack(constant, dtype)
        self.sources[constant.name] = replace(self.sources[constant.name], kept=True)
        return self._beside(constant, "scale", (rows,), WeightForm.OUTPUT_SCALE)

    def offset(self, constant: Node, rows: int, groups: int) -> Node:
        """The new constant, packed float32 [rows, groups], of what the zero points of a kept int4 weight add."""
        return self._beside(constant, "offset", packed_shape(rows, groups), WeightForm.INT4_OFFSET)

    def quantize(self, constant: Node, form: WeightForm, group: int, *, kept: bool = False) -> Node:
        """Declare a weight [N, K] to be stored as int8 or, in groups of K, as int4; the new constant of its scales.

        kept: as the checkpoint has rounded it.
        """
        rows, columns = value(constant).shape
        source = replace(self.sources[constant.name], dtype=torch.float32, kept=kept)
        is_int8 = form is WeightForm.INT8
        shape = quantized_shape(rows, columns) if is_int8 else int4_shape(rows, columns)
        scales = (rows,) if is_int8 else (-(-rows // PANEL), columns // group, PANEL)
        name = self.names()[constant.name]
        with self.graph.inserting_after(constant):  # so that both are made of the same rounding, one after the other
            scale = self.graph.placeholder(f"{constant.name}_scale")
        with self.fake_mode:
            constant.meta["val"] = torch.empty(shape, dtype=torch.uint8)
            scale.meta["val"] = torch.empty(scales, dtype=torch.float32 if is_int8 else torch.bfloat16)
        specs = self.program.graph_signature.input_specs
        place = next(i for i, spec in enumerate(specs) if spec.arg.name == constant.name)
        specs[place] = InputSpec(InputKind.BUFFER, TensorArgument(name=constant.name), name, persistent=True)
        specs.insert(
            place + 1, InputSpec(InputKind.BUFFER, TensorArgument(name=scale.name), f"{name}_scale", persistent=True)
        )
        self.sources[constant.name] = replace(source, form=form, group=group)
        form_of_scale = WeightForm.INT8_SCALE if is_int8 else WeightForm.INT4_SCALE
        self.sources[scale.name] = replace(source, form=form_of_scale, group=group)
        self._allocate(constant)
        self._allocate(scale)
        return scale

    def alternate_gates(self, weight: Node, scale: Node) -> None:
        """Declare the rows of an int8 or int4 weight, which are gates and then ups, to be stored in turns."""
        for constant in (weight, scale):
            self.sources[constant.name] = replace(self.sources[constant.name], gates_alternate=True)

    def move(self, device: torch.device) -> None:
        """Declare all tensors to lie on a device. Nothing is there: constants and example values become shapes of it,
        so that a graph is compiled for a GPU without its memory."""

        def there(tensor: torch.Tensor) -> torch.Tensor:
            with self.fake_mode:
                return torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device=device)

        for node in self.graph.nodes:
            if "val" in node.meta:
                node.meta["val"] = tree_map_only(torch.Tensor, there, node.meta["val"])
            node.args = tuple(device if isinstance(each, torch.device) else each for each in node.args)
            node.kwargs = {key: device if isinstance(each, torch.device) else each for key, each in node.kwargs.items()}
        for held in (self.program.state_dict, self.program.constants):
            for name, tensor in held.items():
                is_parameter = isinstance(tensor, torch.nn.Parameter)
                held[name] = torch.nn.Parameter(there(tensor), requires_grad=False) if is_parameter else there(tensor)
        self.program.graph_module.recompile()

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

    def _beside(self, constant: Node, suffix: str, shape: tuple[int, ...], form: WeightForm) -> Node:
        """A new float32 constant that is made of the same tensors of the checkpoint."""
        name = f"{self.names()[constant.name]}_{suffix}"
        with self.graph.inserting_after(constant):
            node = self.graph.placeholder(f"{constant.name}_{suffix}")
        with self.fake_mode:
            node.meta["val"] = torch.empty(shape)
        specs = self.program.graph_signature.input_specs
        place = next(i for i, spec in enumerate(specs) if spec.arg.name == constant.name)
        specs.insert(place + 1, InputSpec(InputKind.BUFFER, TensorArgument(name=node.name), name, persistent=True))
        self.sources[node.name] = replace(self.sources[constant.name], form=form, dtype=torch.float32)
        self._allocate(node)
        return node

    def _allocate(self, node: Node) -> None:
        """torch wants a tensor behind each constant; this one is address space that nothing ever touches."""
        tensor = torch.empty(tuple(value(node).shape), dtype=value(node).dtype)
        name = self.names()[node.name]
        kind = next(spec.kind for spec in self.program.graph_signature.input_specs if spec.arg.name == node.name)
        parameter = kind is InputKind.PARAMETER
        self.program.state_dict[name] = torch.nn.Parameter(tensor, requires_grad=False) if parameter else tensor

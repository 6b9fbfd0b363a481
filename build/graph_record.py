"""The record of a program's graph: what it calls after the passes, and what one run of it launches."""

import re
from collections import Counter
from collections.abc import Iterable

from torch._ops import OpOverload
from torch.fx import Graph

from pllm.runtime.graphs import FUSED, ProgramGraph

__all__ = ["record"]

_CALL = re.compile(r"\baoti_torch_(?:cpu|cuda)_(\w+)\(|\b(?:call_)?(?:cpp|triton)_\w*fused\w*\(")
"""What Inductor's C++ calls: operators through torch's C interface, and kernels that it wrote itself."""


def record(graph: Graph, wrapper: Iterable[str]) -> ProgramGraph:
    """Of a graph, and of the lines of the C++ that Inductor wrote to run it.

    A program runs straight through, so that a call that stands there once is made once a run.
    """
    nodes = Counter(_name(node.target) for node in graph.nodes if node.op == "call_function")
    calls = (match for line in wrapper if not _declares(line) for match in _CALL.finditer(line))
    kernels = Counter(match[1] or FUSED for match in calls)
    return ProgramGraph(dict(sorted(nodes.items())), dict(sorted(kernels.items())))


def _declares(line: str) -> bool:
    return line.lstrip().startswith(("extern", "//"))


def _name(target: object) -> str:
    """An operator's qualified name, or that of a plain function such as ``getitem``."""
    return str(target) if isinstance(target, OpOverload) else str(getattr(target, "__name__", target))

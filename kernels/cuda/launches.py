"""Which kernels a function launches, found by tracing it: over tensors of no device, without a GPU.

Not while kernels are interpreted (TRITON_INTERPRET=1): there is nothing to trace then.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch._higher_order_ops.triton_kernel_wrap import kernel_side_table, triton_kernel_wrapper_mutation
from torch.fx import Node
from torch.fx.experimental.proxy_tensor import make_fx
from triton.runtime.autotuner import Autotuner

__all__ = ["Launch", "launches"]


@dataclass(frozen=True, slots=True)
class Launch:
    """One launch: a kernel, what it is given, and how it is compiled."""

    kernel: Any
    """A triton.JITFunction."""
    arguments: dict[str, Any]
    """By name: tensors stand for themselves by dtype (torch.dtype); the rest are values."""
    options: dict[str, int]
    """num_warps, num_stages."""
    grid: tuple[int, ...]

    @property
    def name(self) -> str:
        name: str = self.kernel.__name__
        return name.removesuffix("_kernel")


def launches(function: Callable[..., Any], *arguments: Any) -> list[Launch]:
    """The launches of function(*arguments), in order; the arguments are fake tensors, and what is not a tensor."""
    tensors = [argument for argument in arguments if isinstance(argument, torch.Tensor)]

    def call(*given: torch.Tensor) -> Any:
        values = iter(given)
        return function(*(next(values) if isinstance(a, torch.Tensor) else a for a in arguments))

    graph = make_fx(call, tracing_mode="fake")(*tensors).graph
    return [_launch(node) for node in graph.nodes if node.target is triton_kernel_wrapper_mutation]


def _launch(node: Node) -> Launch:
    call: Any = node.kwargs
    kernel: Any = kernel_side_table.get_kernel(call["kernel_idx"])
    options: dict[str, int] = {}
    if isinstance(kernel, Autotuner):  # how torch keeps a launch's options: as the one choice
        options = {name: getattr(kernel.configs[0], name) for name in ("num_warps", "num_stages")}
        kernel = kernel.fn
    given = {**call["kwargs"], **kernel_side_table.get_constant_args(call["constant_args_idx"])}
    given = {name: value.meta["val"].dtype if isinstance(value, Node) else value for name, value in given.items()}
    return Launch(kernel, {name: given[name] for name in kernel.arg_names}, options, tuple(call["grid"][0]))

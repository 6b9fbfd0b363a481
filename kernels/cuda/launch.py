"""How kernels are launched: traced into a graph, run on a device, or interpreted."""

from typing import Any

import torch
from torch.library import wrap_triton
from triton.runtime.interpreter import InterpretedFunction

__all__ = ["Integer", "launch", "power_of_two"]

Integer = int | torch.SymInt
"""A size: symbolic while a graph is traced."""


def launch(kernel: Any, grid: tuple[Integer, ...], *arguments: Any, **options: Any) -> None:
    """Run `kernel` over `grid`, or, while torch traces, record the launch in the graph.

    options: the kernel's constants, and num_warps and num_stages.
    """
    # torch 2.11 cannot wrap what is interpreted; there is nothing to trace then.
    target = kernel if isinstance(kernel, InterpretedFunction) else wrap_triton(kernel)
    target[grid](*arguments, **options)


def power_of_two(size: int) -> int:
    """The smallest power of two that is no less."""
    return 1 << (size - 1).bit_length()

"""Staging: a step's small arrays in one piece of memory, so that they cross to the device in one copy.

A layout names arrays by dtype and shape; host and device hold them at the same offsets. The host has two pieces and
fills them in turn, because the copy of one step may be under way while the next is laid out.
"""

from collections.abc import Mapping
from math import prod
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor

__all__ = ["Layout", "Staging"]

_ALIGNMENT = 64
Layout = Mapping[str, tuple[torch.dtype, tuple[int, ...]]]


class Staging:
    """`device[name]` are the device's arrays, at fixed addresses; `fill()` gives the host's, for the next `send()`."""

    def __init__(self, layout: Layout, device: torch.device) -> None:
        self._on_gpu = device.type == "cuda"
        offsets, size = {}, 0
        for name, (dtype, shape) in layout.items():
            offsets[name] = size
            size += -(-prod(shape) * dtype.itemsize // _ALIGNMENT) * _ALIGNMENT
        self._pieces = [torch.zeros(size, dtype=torch.uint8, pin_memory=self._on_gpu) for _ in range(2)]
        views = [_views(piece, layout, offsets) for piece in self._pieces]
        # As numpy has them, made once: torch takes ten times as long to set an element.
        self._hosts = [{name: tensor.numpy() for name, tensor in view.items()} for view in views]
        self._sent: list[torch.cuda.Event | None] = [None, None]
        self._memory = torch.zeros(size, dtype=torch.uint8, device=device)
        self._turn = 0
        self.device: Mapping[str, Tensor] = _views(self._memory, layout, offsets)

    def fill(self) -> Mapping[str, NDArray[Any]]:
        """The host's arrays, to be written before `send`. Waits until the copy before the last one is over."""
        self._turn = 1 - self._turn
        sent = self._sent[self._turn]
        if sent is not None:
            sent.synchronize()
        return self._hosts[self._turn]

    def send(self) -> None:
        """Copy what was filled to the device, in the order of its launches. Does not wait."""
        self._memory.copy_(self._pieces[self._turn], non_blocking=True)
        if self._on_gpu:
            event = torch.cuda.Event()
            event.record()
            self._sent[self._turn] = event


def _views(memory: Tensor, layout: Layout, offsets: Mapping[str, int]) -> dict[str, Tensor]:
    return {
        name: memory[offsets[name] : offsets[name] + prod(shape) * dtype.itemsize].view(dtype).view(shape)
        for name, (dtype, shape) in layout.items()
    }

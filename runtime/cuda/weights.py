"""Weights on the device: each tensor of the artifact's files copied there once, for all programs."""

import ctypes
from collections.abc import Mapping

import torch
from torch import Tensor

from pllm.runtime.artifact import Weight

__all__ = ["load_weights"]

_DTYPES = {
    "F32": torch.float32,
    "BF16": torch.bfloat16,
    "F16": torch.float16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}


def load_weights(weights: Mapping[str, Weight], device: torch.device) -> dict[str, Tensor]:
    """Copies of the mapped tensors, by name. They outlive the mapping."""
    return {name: _mapped(weight).to(device, copy=True) for name, weight in weights.items()}


def _mapped(weight: Weight) -> Tensor:
    dtype = _DTYPES[weight.dtype]
    if not weight.nbytes:
        return torch.empty(weight.shape, dtype=dtype)
    memory = (ctypes.c_char * weight.nbytes).from_address(weight.address)
    return torch.frombuffer(memory, dtype=dtype).view(weight.shape)

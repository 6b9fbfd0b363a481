"""Weights as whole numbers: how they are rounded, and how they lie in memory. Runs at build, with torch.

int8: one scale an output, symmetric: w is near scale * q with q in [-127, 127] (Jacob et al. 2018, "Quantization and
Training of Neural Networks for Efficient Integer-Arithmetic-Only Inference", without zero points). The packed form is
what the CPU's product streams: panels of 32 outputs, and in each, four consecutive inputs of an output side by side,
which one instruction multiplies and adds up. 128 is added, since that instruction takes unsigned weights.
"""

import torch

from pllm.kernels.packing import PANEL

__all__ = ["QUAD", "dequantize", "pack_quantized", "quantize_int8", "quantized_shape", "unpack_quantized"]

QUAD = 4
_BIAS = 128


def quantize_int8(weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Round `weight` [N, K] to int8 [N, K] and a scale, float32 [N]; a row of zeros has the scale 1."""
    wide = weight.float()
    largest = wide.abs().amax(dim=1)
    scale = torch.where(largest > 0, largest / 127, torch.ones_like(largest))
    return (wide / scale[:, None]).round().clamp(-127, 127).to(torch.int8), scale


def dequantize(rounded: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """The float32 weight [N, K] that int8 `rounded` [N, K] and `scale` [N] stand for."""
    return rounded.float() * scale[:, None]


def quantized_shape(out_features: int, in_features: int) -> tuple[int, int, int, int]:
    """The shape of a packed int8 weight [N, K]: [ceil(N/32), ceil(K/4), 32, 4]."""
    return -(-out_features // PANEL), -(-in_features // QUAD), PANEL, QUAD


def pack_quantized(rounded: torch.Tensor) -> torch.Tensor:
    """Pack int8 `rounded` [N, K] into uint8 [ceil(N/32), ceil(K/4), 32, 4], with 128 added and zeros for padding."""
    n, k = rounded.shape
    panels, quads, _, _ = quantized_shape(n, k)
    padded = torch.nn.functional.pad(rounded, (0, quads * QUAD - k, 0, panels * PANEL - n))
    biased = (padded.to(torch.int16) + _BIAS).to(torch.uint8)
    return biased.reshape(panels, PANEL, quads, QUAD).transpose(1, 2).contiguous()


def unpack_quantized(packed: torch.Tensor, out_features: int, in_features: int) -> torch.Tensor:
    """The int8 weight [N, K] that `pack_quantized` packed."""
    rows = packed.transpose(1, 2).reshape(packed.shape[0] * PANEL, -1)[:out_features, :in_features]
    return (rows.to(torch.int16) - _BIAS).to(torch.int8)

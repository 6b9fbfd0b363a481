"""Weights as whole numbers: how they are rounded, and how they lie in memory. Runs at build, with torch.

int8: one scale an output, symmetric: w is near scale * q with q in [-127, 127] (Jacob et al. 2018, "Quantization and
Training of Neural Networks for Efficient Integer-Arithmetic-Only Inference", without zero points). The packed form is
what the CPU's product streams: panels of 32 outputs, and in each, four consecutive inputs of an output side by side,
which one instruction multiplies and adds up. 128 is added, since that instruction takes unsigned weights.

int4: a scale for each output and group of inputs, in bfloat16, symmetric: q in [-8, 7]. Of a few scales that clip more
or less, each group takes the one with the least squared error. Packed, 8 is added, and a byte holds the weights of two
consecutive fours of inputs: the first in its low half.

A KV cache in int8 has a scale for each key and value of a head, float32: `round_rows`. In the pool the keys of a block
and head, [block_size, D] bytes, are followed by their scales, and so are the values. So a block holds all that belongs
to it, and where block_size is 16 a head's scales are one line of the processor's cache.

A gated weight has its gates and ups in turns, half a panel each, so that SiLU·mul finds both in the registers.
"""

import torch

from pllm.kernels.packing import PANEL

__all__ = [
    "GATE_RUN",
    "QUAD",
    "SCALE_BYTES",
    "alternate_gates",
    "cache_parts",
    "dequantize",
    "dequantize_int4",
    "int4_shape",
    "pack_int4",
    "pack_int4_scale",
    "pack_quantized",
    "quantize_int4",
    "quantize_int8",
    "quantized_shape",
    "round_rows",
    "unpack_int4",
    "unpack_quantized",
]

QUAD = 4
GATE_RUN = PANEL // 2
"""Gates that lie beside each other, before as many ups."""
SCALE_BYTES = 4
"""Of a key or value in an int8 cache: its scale, a float32."""
_BIAS = 128
_INT4_BIAS = 8
_LARGEST = (7.0, 7.5, 8.0, 8.6, 9.3)
"""What a group's largest weight may become before it is clipped: candidates for its scale."""


def quantize_int8(weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Round `weight` [N, K] to int8 [N, K] and a scale, float32 [N]; a row of zeros has the scale 1."""
    wide = weight.float()
    largest = wide.abs().amax(dim=1)
    scale = torch.where(largest > 0, largest / 127, torch.ones_like(largest))
    return (wide / scale[:, None]).round().clamp(-127, 127).to(torch.int8), scale


def round_rows(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Round rows of float32 [..., K] to int8 [..., K], to nearest even, and scales, float32 [...].

    A scale is the row's largest element's size / 127. A row that holds NaN or infinity has one that is neither finite,
    and one so small that 127 / its largest is infinite becomes zeros.
    """
    largest = x.abs().amax(dim=-1)
    steps = torch.full_like(largest, 127) / largest  # 127 / largest would be 127 times the reciprocal, rounded twice
    steps = steps.where(steps.isfinite(), torch.zeros_like(largest))
    rounded = (x * steps[..., None]).round().nan_to_num(0, 0, 0).to(torch.int8)
    return rounded, largest / torch.full_like(largest, 127)


def cache_parts(kv: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Of an int8 pool [..., block_size, D + 4]: views of its values [..., block_size, D] and its scales."""
    block_size, width = kv.shape[-2:]
    planes, values = kv.flatten(-2), block_size * (width - SCALE_BYTES)
    return planes[..., :values].unflatten(-1, (block_size, -1)), planes[..., values:].view(torch.float32)


def dequantize(rounded: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """The float32 weight [N, K] that int8 `rounded` [N, K] and `scale` [N] stand for."""
    return rounded.float() * scale[:, None]


def quantized_shape(out_features: int, in_features: int) -> tuple[int, int, int, int]:
    """The shape of a packed int8 weight [N, K]: [ceil(N/32), ceil(K/4), 32, 4]."""
    return -(-out_features // PANEL), -(-in_features // QUAD), PANEL, QUAD


def alternate_gates(rows: torch.Tensor) -> torch.Tensor:
    """Rows [2N, ...], N gates and then N ups, in turns of GATE_RUN; N is a multiple of that."""
    return torch.stack([half.unflatten(0, (-1, GATE_RUN)) for half in rows.chunk(2)], dim=1).flatten(0, 2)


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


def quantize_int4(weight: torch.Tensor, group: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Round `weight` [N, K] to int8 [N, K] in [-8, 7] and scales, bfloat16 [N, K / group]; group divides K."""
    groups = weight.float().unflatten(1, (-1, group))
    largest = groups.abs().amax(dim=2)
    best = torch.full_like(largest, float("inf"))
    scale = torch.ones_like(largest, dtype=torch.bfloat16)
    rounded = torch.zeros_like(groups, dtype=torch.int8)
    for steps in _LARGEST:
        tried = torch.where(largest > 0, largest / steps, torch.ones_like(largest)).to(torch.bfloat16)
        wide = tried.float()[:, :, None]
        whole = (groups / wide).round().clamp(-8, 7)
        error = (whole * wide - groups).square().sum(dim=2)
        better = error < best
        best = torch.where(better, error, best)
        scale = torch.where(better, tried, scale)
        rounded = torch.where(better[:, :, None], whole.to(torch.int8), rounded)
    return rounded.flatten(1), scale


def dequantize_int4(rounded: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """The float32 weight [N, K] that int8 `rounded` [N, K] and `scale` [N, groups] stand for."""
    groups = rounded.float().reshape(*scale.shape, -1)
    return (groups * scale.float()[:, :, None]).flatten(1)


def int4_shape(out_features: int, in_features: int) -> tuple[int, int, int, int]:
    """The shape of a packed int4 weight [N, K], K a multiple of 8: [ceil(N/32), K/8, 32, 4]."""
    return -(-out_features // PANEL), in_features // (2 * QUAD), PANEL, QUAD


def pack_int4(rounded: torch.Tensor) -> torch.Tensor:
    """Pack int8 `rounded` [N, K] in [-8, 7] into uint8 [ceil(N/32), K/8, 32, 4]; K is a multiple of 8."""
    n, k = rounded.shape
    panels, pairs, _, _ = int4_shape(n, k)
    padded = torch.nn.functional.pad(rounded, (0, 0, 0, panels * PANEL - n))
    biased = (padded + _INT4_BIAS).to(torch.uint8).reshape(panels, PANEL, pairs, 2, QUAD).permute(0, 2, 3, 1, 4)
    return (biased[:, :, 0] | biased[:, :, 1] << 4).contiguous()


def pack_int4_scale(scale: torch.Tensor) -> torch.Tensor:
    """Pack scales [N, groups] into [ceil(N/32), groups, 32], zeros for padding."""
    padded = torch.nn.functional.pad(scale, (0, 0, 0, -len(scale) % PANEL))
    return padded.reshape(-1, PANEL, scale.shape[1]).transpose(1, 2).contiguous()


def unpack_int4(packed: torch.Tensor, scale: torch.Tensor, out_features: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The int8 weight [N, K] and scales [N, groups] of a packed int4 weight and its packed scales."""
    halves = torch.stack((packed & 15, packed >> 4), dim=2).to(torch.int8) - _INT4_BIAS
    rows = halves.permute(0, 3, 1, 2, 4).flatten(2).flatten(0, 1)
    return rows[:out_features], scale.transpose(1, 2).flatten(0, 1)[:out_features]

"""The packed layout of a linear weight, and back. Runs at build, with torch.

A weight [N, K] becomes panels of 32 output columns, [ceil(N/32), K, 32], N padded with zeros: the product reads one
contiguous stream, and 32 outputs stay in registers while K runs. Weights of one shape, as a layer's experts have, are
packed as one tensor with the dimensions that lead. bfloat16 is storage only: a panel's line of 64 bytes
interleaves its columns so that the 32-bit word j holds column j (low half) and column j + 16 (high half), which widen
to float32 by a shift and by a mask, both exact.
"""

import torch

__all__ = ["PANEL", "pack_linear", "packed_shape", "unpack_linear"]

PANEL = 32


def packed_shape(*shape: int) -> tuple[int, ...]:
    """The shape of a packed weight [..., N, K]: [..., ceil(N/32), K, 32]."""
    *lead, out_features, in_features = shape
    return (*lead, -(-out_features // PANEL), in_features, PANEL)


def pack_linear(weight: torch.Tensor) -> torch.Tensor:
    """Pack `weight` [..., N, K] (float32 or bfloat16) into a new contiguous [..., ceil(N/32), K, 32] of its dtype."""
    if weight.dtype not in (torch.float32, torch.bfloat16):
        raise TypeError(f"a packed weight is float32 or bfloat16, not {weight.dtype}: convert it first")
    *lead, n, k = weight.shape
    panels = -(-n // PANEL)
    if n % PANEL:
        weight = torch.nn.functional.pad(weight, (0, 0, 0, panels * PANEL - n))
    if weight.dtype == torch.bfloat16:
        pairs = weight.reshape(-1, 2, PANEL // 2, k).permute(0, 3, 2, 1)
        return pairs.reshape(*lead, panels, k, PANEL).contiguous()
    return weight.reshape(*lead, panels, PANEL, k).transpose(-1, -2).contiguous()


def unpack_linear(packed: torch.Tensor, out_features: int) -> torch.Tensor:
    """The weight [N, K] that `pack_linear` packed; N = `out_features`."""
    panels, k, _ = packed.shape
    if packed.dtype == torch.bfloat16:
        weight = packed.reshape(panels, k, PANEL // 2, 2).permute(0, 3, 2, 1).reshape(panels * PANEL, k)
    else:
        weight = packed.permute(0, 2, 1).reshape(panels * PANEL, k)
    return weight[:out_features].contiguous()

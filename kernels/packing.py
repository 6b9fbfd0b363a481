"""The packed layout of a linear weight, and back. Runs at build, with torch.

A weight [N, K] becomes panels of 32 output columns, [ceil(N/32), K, 32], N padded with zeros: the product reads one
contiguous stream, and 32 outputs stay in registers while K runs. bfloat16 is storage only: a panel's line of 64 bytes
interleaves its columns so that the 32-bit word j holds column j (low half) and column j + 16 (high half), which widen
to float32 by a shift and by a mask, both exact.
"""

import torch

__all__ = ["PANEL", "pack_linear", "packed_shape", "unpack_linear"]

PANEL = 32


def packed_shape(out_features: int, in_features: int) -> tuple[int, int, int]:
    """The shape of the packed weight of a linear with N = `out_features` and K = `in_features`."""
    return (-(-out_features // PANEL), in_features, PANEL)


def pack_linear(weight: torch.Tensor) -> torch.Tensor:
    """Pack `weight` [N, K] (float32 or bfloat16) into a new contiguous tensor [ceil(N/32), K, 32] of the same dtype."""
    if weight.dtype not in (torch.float32, torch.bfloat16):
        raise TypeError(f"a packed weight is float32 or bfloat16, not {weight.dtype}: convert it first")
    n, k = weight.shape
    panels = packed_shape(n, k)[0]
    if n % PANEL:
        weight = torch.nn.functional.pad(weight, (0, 0, 0, panels * PANEL - n))
    if weight.dtype == torch.bfloat16:
        return weight.reshape(panels, 2, PANEL // 2, k).permute(0, 3, 2, 1).reshape(panels, k, PANEL).contiguous()
    return weight.reshape(panels, PANEL, k).permute(0, 2, 1).contiguous()


def unpack_linear(packed: torch.Tensor, out_features: int) -> torch.Tensor:
    """The weight [N, K] that `pack_linear` packed; N = `out_features`."""
    panels, k, _ = packed.shape
    if packed.dtype == torch.bfloat16:
        weight = packed.reshape(panels, k, PANEL // 2, 2).permute(0, 3, 2, 1).reshape(panels * PANEL, k)
    else:
        weight = packed.permute(0, 2, 1).reshape(panels * PANEL, k)
    return weight[:out_features].contiguous()

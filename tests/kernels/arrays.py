"""torch tensors as the arrays that the operator library takes (bfloat16 as uint16); random steps of attention."""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from pllm.kernels import reference
from pllm.kernels.cpu.library import CpuLibrary
from pllm.kernels.quantization import SCALE_BYTES, cache_parts, round_rows


def view(tensor: torch.Tensor) -> NDArray[Any]:
    """The tensor's memory as an array."""
    return tensor.view(torch.uint16).numpy() if tensor.dtype == torch.bfloat16 else tensor.numpy()


@dataclass(frozen=True)
class Step:
    """The arguments of one call of paged attention."""

    q: torch.Tensor
    k: torch.Tensor
    v: torch.Tensor
    kv: torch.Tensor
    block_table: torch.Tensor
    query_start: torch.Tensor
    context_len: torch.Tensor
    sinks: torch.Tensor | None = None
    layer: int = 1
    scale: float = 0.1
    sliding_window: int = 0
    softcap: float = 0.0

    @staticmethod
    def random(
        seed: int,
        lengths: list[tuple[int, int]],
        *,
        heads: int = 4,
        kv_heads: int = 2,
        head_dim: int = 64,
        block_size: int = 16,
        dtype: torch.dtype = torch.bfloat16,
        sinks: bool = False,
        strided: bool = True,
        **rest: Any,
    ) -> "Step":
        """lengths: per sequence (new tokens, context after the step). Slots that nobody wrote hold NaN."""
        g = torch.Generator().manual_seed(seed)
        tokens = sum(new for new, _ in lengths)
        counts = [-(-context // block_size) for _, context in lengths]
        num_blocks, width = sum(counts) + 2, max(counts) + 1
        order = torch.randperm(num_blocks, generator=g, dtype=torch.int32)
        table = torch.full((len(lengths), width), -1, dtype=torch.int32)
        kv = _unwritten((num_blocks, 3, 2, kv_heads, block_size, head_dim), dtype)
        at = 0
        for b, ((new, context), count) in enumerate(zip(lengths, counts, strict=True)):
            table[b, :count] = order[at : at + count]
            at += count
            for position in range(context - new):
                block = int(table[b, position // block_size])
                entries, offset = torch.randn((3, 2, kv_heads, head_dim), generator=g), position % block_size
                if dtype == torch.int8:
                    values, scales = cache_parts(kv)
                    values[block, :, :, :, offset], scales[block, :, :, :, offset] = round_rows(entries)
                else:
                    kv[block, :, :, :, offset] = entries.to(dtype)
        if strided:  # as they come out of a merged projection
            merged = torch.randn((tokens, (heads + 2 * kv_heads) * head_dim), generator=g)
            parts = merged.split([heads * head_dim, kv_heads * head_dim, kv_heads * head_dim], dim=1)
            q, k, v = (part.unflatten(1, (-1, head_dim)) for part in parts)
        else:
            q, k, v = (torch.randn((tokens, n, head_dim), generator=g) for n in (heads, kv_heads, kv_heads))
        starts = torch.tensor([0, *np.cumsum([new for new, _ in lengths])], dtype=torch.int32)
        contexts = torch.tensor([context for _, context in lengths], dtype=torch.int32)
        sink = torch.randn(heads, generator=g) if sinks else None
        return Step(3 * q, k, v, kv, table, starts, contexts, sink, **rest)

    def expected(self) -> tuple[torch.Tensor, torch.Tensor]:
        """What the reference says: the output and the pool afterwards."""
        kv = self.kv.clone()
        out = reference.paged_attention(
            self.q, self.k, self.v, kv, self.block_table, self.query_start, self.context_len, self.sinks,
            self.layer, self.scale, self.sliding_window, self.softcap,
        )  # fmt: skip
        return out, kv

    def run(self, library: CpuLibrary) -> tuple[torch.Tensor, torch.Tensor]:
        """What the library says, from a copy of the pool, into an output full of NaN."""
        kv = self.kv.clone()
        out = np.full(tuple(self.q.shape), np.nan, np.float32)
        library.paged_attention(
            view(self.q), view(self.k), view(self.v), view(kv), view(self.block_table), view(self.query_start),
            view(self.context_len), None if self.sinks is None else view(self.sinks), layer=self.layer,
            scale=self.scale, sliding_window=self.sliding_window, softcap=self.softcap, out=out,
        )  # fmt: skip
        return torch.from_numpy(out), kv

    def only(self, b: int) -> "Step":
        """The same step with sequence b alone."""
        rows = slice(int(self.query_start[b]), int(self.query_start[b + 1]))
        return replace(
            self,
            q=self.q[rows],
            k=self.k[rows],
            v=self.v[rows],
            block_table=self.block_table[b : b + 1].contiguous(),
            query_start=self.query_start[b : b + 2] - self.query_start[b],
            context_len=self.context_len[b : b + 1],
        )


def _unwritten(shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
    """A pool that holds NaN: in int8, as scales."""
    if dtype != torch.int8:
        return torch.full(shape, torch.nan, dtype=dtype)
    kv = torch.full((*shape[:-1], shape[-1] + SCALE_BYTES), 77, dtype=torch.int8)
    cache_parts(kv)[1].fill_(torch.nan)
    return kv

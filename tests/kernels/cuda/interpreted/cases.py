"""Random steps for the CUDA kernels, poisoned: what nobody wrote holds NaN, and so must what nobody may write.

Used interpreted on a CPU and, by `pytest -m gpu`, on a device.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate

import torch

from pllm.kernels import reference

BYTES = (torch.uint8, torch.float8_e4m3fn)
NAN_BYTE = 0x7F
"""NaN in e4m3. Read from a pool of bytes it counts 480, which no other value does, and which is seen all the same."""


def poisoned(shape: Sequence[int], dtype: torch.dtype) -> torch.Tensor:
    if dtype in BYTES:
        return torch.full(shape, NAN_BYTE, dtype=torch.uint8).view(dtype)
    return torch.full(shape, torch.nan, dtype=dtype)


@dataclass(frozen=True)
class Step:
    """The inputs of attention over a pool that holds all keys and values of the step."""

    q: torch.Tensor
    kv: torch.Tensor
    block_table: torch.Tensor
    query_start: torch.Tensor
    context_len: torch.Tensor
    sinks: torch.Tensor | None
    layer: int
    sliding_window: int
    softcap: float
    k_scale: float
    v_scale: float

    @property
    def scale(self) -> float:
        return self.q.shape[2] ** -0.5

    @property
    def new_tokens(self) -> list[int]:
        return self.query_start.diff().tolist()

    @staticmethod
    def random(
        g: torch.Generator,
        lengths: Sequence[tuple[int, int]],
        *,
        heads: int = 4,
        kv_heads: int = 2,
        head_dim: int = 64,
        block_size: int = 16,
        dtype: torch.dtype = torch.float32,
        kv_dtype: torch.dtype | None = None,
        sinks: bool = False,
        sliding_window: int = 0,
        softcap: float = 0.0,
        padding: int = 2,
    ) -> "Step":
        """lengths: per sequence (new tokens, context after the step); `padding` more rows of q belong to no sequence.

        Keys that no query sees have blocks that do not exist.
        """
        kv_dtype = kv_dtype or dtype
        layers, layer = 2, int(torch.randint(0, 2, (), generator=g))
        counts = [-(-context // block_size) for _, context in lengths]
        num_blocks, width = sum(counts) + 2, max(1, *counts) + 1
        order = torch.randperm(num_blocks, generator=g, dtype=torch.int32)
        table = torch.full((len(lengths), width), -1, dtype=torch.int32)
        # The block before the first is poison too: -1 reads it.
        kv = poisoned((1 + num_blocks, layers, 2, kv_heads, block_size, head_dim), kv_dtype)[1:]
        at = 0
        for b, ((new, context), count) in enumerate(zip(lengths, counts, strict=True)):
            table[b, :count] = order[at : at + count]
            at += count
            if context:
                entries = reference.stored(torch.randn((context, 2, kv_heads, head_dim), generator=g), kv_dtype)
                position = torch.arange(context)
                kv[table[b].long()[position // block_size], layer, :, :, position % block_size] = entries
            if new and sliding_window:
                table[b, : max(0, context - new + 1 - sliding_window) // block_size] = -1
        starts = [0, *accumulate(new for new, _ in lengths)]
        # Queries lie as in a merged projection: strided over tokens.
        q = 2 * torch.randn((starts[-1] + padding, heads + 2 * kv_heads, head_dim), generator=g)
        quantised = kv_dtype in BYTES
        return Step(
            q=q.to(dtype)[:, :heads],
            kv=kv,
            block_table=table,
            query_start=torch.tensor(starts, dtype=torch.int32),
            context_len=torch.tensor([context for _, context in lengths], dtype=torch.int32),
            sinks=torch.randn(heads, generator=g).to(dtype) if sinks else None,
            layer=layer,
            sliding_window=sliding_window,
            softcap=softcap,
            k_scale=0.75 if quantised else 1.0,
            v_scale=1.5 if quantised else 1.0,
        )

    def expected(self) -> torch.Tensor:
        """What the specification says in float64; the padding's rows hold zeros."""
        return reference.cached_attention(
            self.q.double(), self.kv, self.block_table, self.query_start, self.context_len, self.sinks, self.layer,
            self.scale, self.sliding_window, self.softcap, self.k_scale, self.v_scale,
        )  # fmt: skip

    def to(self, device: str) -> "Step":
        names = ("q", "kv", "block_table", "query_start", "context_len", "sinks")
        moved = {name: value.to(device) for name in names if (value := getattr(self, name)) is not None}
        return replace(self, **moved)


def relative_error(got: torch.Tensor, expected: torch.Tensor) -> float:
    """|got - expected| over |expected|, in float64; NaN where there is one."""
    difference = got.double() - expected.double()
    return float(difference.norm() / expected.double().norm().clamp(min=1e-30))


def generators(count: int, seed: int) -> Iterator[torch.Generator]:
    for i in range(count):
        yield torch.Generator().manual_seed(seed + i)

"""What a kernel takes on this machine's GPU: graphs of launches over inputs that rotate, so no cache holds them."""

import statistics
from collections.abc import Callable
from typing import Any

import torch
import triton

from pllm.build.tune import Configuration, KernelNeed
from pllm.kernels.cuda.configurations import Configurations
from pllm.kernels.cuda.operators import CudaOperators

__all__ = ["KernelTiming"]

_CACHE = 256 << 20
"""Bytes that the inputs exceed together, several times the second-level cache."""
_REPLAYS = 5

Launch = Callable[[int], Any]


class KernelTiming:
    """A `Timing` (`pllm.build.tune`). Inputs are random, and valid: block tables name blocks that are there."""

    def __init__(self) -> None:
        self._shipped = Configurations.shipped(torch.cuda.get_device_capability())
        self._device = torch.device("cuda", torch.cuda.current_device())

    def __call__(self, need: KernelNeed, configuration: Configuration) -> float | None:
        rows: dict[str, Any] = {need.kernel.removesuffix("_attention"): {need.shape: configuration}}
        operators = CudaOperators(Configurations(self._shipped.device_name, **rows))
        try:
            if need.kernel == "small_linear":
                return _microseconds(*self._product(operators, need))
            if need.kernel == "prefill_attention":
                return _microseconds(*self._attention(operators, need, 1, 2048, 2048))
            # A few long sequences, and many: one configuration serves both.
            long, many = ((1, 8192), (64, 1024))
            return sum(_microseconds(*self._attention(operators, need, n, 1, context)) for n, context in (long, many))
        except (RuntimeError, triton.TritonError):  # more shared memory or registers than there are
            return None
        finally:
            torch.cuda.empty_cache()

    def _normal(self, *shape: int) -> torch.Tensor:
        return torch.randn(shape, device=self._device, dtype=torch.bfloat16)

    def _product(self, operators: CudaOperators, need: KernelNeed) -> tuple[Launch, int]:
        size, depth, max_rows = need.shape
        width = 2 * size if need.gated else size
        sets = max(2, _CACHE // (2 * width * depth) + 1)
        x, weights = self._normal(max_rows, depth), self._normal(sets, width, depth)

        def launch(i: int) -> torch.Tensor:
            return operators.small_linear(x, weights[i % sets], None, None, None, 1e-6, 0.0, need.gated, max_rows)

        return launch, sets

    def _attention(
        self, operators: CudaOperators, need: KernelNeed, sequences: int, new: int, context: int
    ) -> tuple[Launch, int]:
        head_dim, group = need.shape
        kv_heads, block = need.kv_heads, need.block_size
        blocks = -(-context // block)
        layers = max(2, _CACHE // (4 * sequences * context * kv_heads * head_dim) + 1)
        kv = self._normal(sequences * blocks, layers, 2, kv_heads, block, head_dim)
        q = self._normal(sequences * new, kv_heads * group, head_dim)
        table = torch.randperm(sequences * blocks, device=self._device).int().view(sequences, blocks)
        starts = torch.arange(sequences + 1, device=self._device, dtype=torch.int32) * new
        contexts = torch.full((sequences,), context, device=self._device, dtype=torch.int32)
        arrivals = torch.zeros((layers, sequences * new, kv_heads), dtype=torch.int32, device=self._device)

        def launch(i: int) -> torch.Tensor:
            if i == 0:
                arrivals.zero_()  # a program's write of keys does it
            return operators.cached_attention(
                q, kv, table, starts, contexts, None, arrivals[i], i, head_dim**-0.5, 0, 0.0, 1.0, 1.0, sequences,
                new == 1,
            )  # fmt: skip

        return launch, layers


def _microseconds(launch: Launch, launches: int) -> float:
    """Of one launch: the median of replays of all of them."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        launch(0)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for i in range(launches):
            launch(i)
    graph.replay()
    times: list[float] = []
    for _ in range(_REPLAYS):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        graph.replay()
        end.record()
        end.synchronize()
        times.append(begin.elapsed_time(end) * 1e3 / launches)
    return statistics.median(times)

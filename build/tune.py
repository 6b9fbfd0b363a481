"""Tune: the kernels' configurations, chosen by timing on the GPU that the artifact is for, and frozen in its programs.

What is timed is what the rewritten graphs call: attention by head size and group, small products by their sizes. The
rows that are shipped (`kernels/cuda/configurations.py`) come first and win ties; what the time does not reach keeps
them.
"""

import itertools
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch

from pllm.build.cuda_programs import CudaProgram
from pllm.build.pipeline import Build
from pllm.build.progress import StageProgress
from pllm.build.traced import argument, value
from pllm.kernels.cuda.configurations import (
    Configurations,
    DecodeConfiguration,
    PrefillConfiguration,
    SmallLinearConfiguration,
)
from pllm.runtime.manifest import KernelChoice

__all__ = ["Configuration", "KernelNeed", "Timing", "kernel_needs", "tune", "tuned"]

Configuration = DecodeConfiguration | PrefillConfiguration | SmallLinearConfiguration

Timing = Callable[["KernelNeed", Configuration], float | None]
"""Microseconds of a kernel with a configuration, at the load that its need stands for; None where it cannot run."""

_SECONDS = 150.0
"""What choosing may take: each candidate is compiled, in a second or two, and timed in less."""

_pllm = torch.ops.pllm


@dataclass(frozen=True, slots=True)
class KernelNeed:
    """A kernel that the programs call, and the shape that its configuration depends on."""

    kernel: str
    shape: tuple[int, ...]
    """Head size and query heads a KV head; of a product N, K and the most rows."""
    kv_heads: int = 0
    block_size: int = 0
    gated: bool = False


def tune(build: Build, progress: StageProgress) -> None:
    """The stage: time the candidates on this machine's GPU."""
    # It needs a GPU, and torch's CUDA; the rest of this file does not.
    from pllm.build.kernel_timing import KernelTiming  # noqa: PLC0415

    shipped = Configurations.shipped(torch.cuda.get_device_capability())
    needs = kernel_needs(build.exported)
    build.configurations, build.choices = tuned(needs, shipped, KernelTiming(), _SECONDS, progress.show)
    timed = [choice for choice in build.choices if choice.us is not None]
    progress.say(f"{len(timed)} of {len(build.choices)} kernels timed, the others as shipped for {shipped.device_name}")


def kernel_needs(programs: Iterable[CudaProgram]) -> tuple[KernelNeed, ...]:
    """What the graphs call, each shape once, those first that most of a step's time goes to."""
    found: dict[KernelNeed, None] = {}
    for program in programs:
        for node in program.traced.calls(_pllm.small_linear.default):
            rows, depth = value(argument(node, 1)).shape
            gated, max_rows = node.args[7], node.args[8]
            assert isinstance(gated, bool) and isinstance(max_rows, int)
            found[KernelNeed("small_linear", (rows // (2 if gated else 1), depth, max_rows), gated=gated)] = None
        for node in program.traced.calls(_pllm.cached_attention.default):
            heads, head_dim = (int(size) for size in value(argument(node, 0)).shape[1:])
            kv_heads, block_size = (int(size) for size in value(argument(node, 1)).shape[3:5])
            kernels = ("decode_attention",) if program.step.decodes else ("decode_attention", "prefill_attention")
            for kernel in kernels:
                found[KernelNeed(kernel, (head_dim, heads // kv_heads), kv_heads, block_size)] = None
    order = ("small_linear", "decode_attention", "prefill_attention")
    return tuple(sorted(found, key=lambda need: order.index(need.kernel)))


def tuned(
    needs: Sequence[KernelNeed],
    shipped: Configurations,
    timing: Timing,
    seconds: float,
    show: Callable[[str], None],
    *,
    clock: Callable[[], float] = time.monotonic,
) -> tuple[Configurations, tuple[KernelChoice, ...]]:
    """The fastest configuration of each need, and the record of it.

    The shipped one is timed first; with the time used up, or where nothing runs, it is kept. A need gets its share of
    the time that is left, so that a slow one leaves something to those after it.
    """
    chosen: dict[str, Any] = {"decode": {}, "prefill": {}, "small_linear": {}}
    choices = []
    end = clock() + seconds
    for index, need in enumerate(needs):
        show(f"{need.kernel} {need.shape}")
        until = clock() + (end - clock()) / (len(needs) - index)
        best, best_us = _shipped(shipped, need), None
        for candidate in (best, *_candidates(shipped, need)):
            if clock() >= until:
                break
            us = timing(need, candidate)
            if us is not None and (best_us is None or us < best_us):
                best, best_us = candidate, us
        chosen[need.kernel.removesuffix("_attention")][need.shape] = best
        choices.append(KernelChoice(kernel=need.kernel, shape=need.shape, values=asdict(best), us=best_us))
    return replace(shipped, **chosen), tuple(choices)


def _shipped(shipped: Configurations, need: KernelNeed) -> Configuration:
    if need.kernel == "small_linear":
        size, depth, max_rows = need.shape
        return shipped.for_small_linear(size, depth, max_rows)
    head_dim, group = need.shape
    is_decode = need.kernel == "decode_attention"
    return shipped.for_decode(head_dim, group) if is_decode else shipped.for_prefill(head_dim, group)


def _candidates(shipped: Configurations, need: KernelNeed) -> Iterator[Configuration]:
    """Others than the shipped one, the likelier ones first."""
    first = _shipped(shipped, need)
    for candidate in _all_candidates(shipped, need):
        if candidate != first:
            yield candidate


def _all_candidates(shipped: Configurations, need: KernelNeed) -> Iterator[Configuration]:
    if need.kernel == "decode_attention":
        multiprocessors = shipped.device.multiprocessors
        for per, block_n, warps, stages in itertools.product((2, 4, 1), (64, 128, 32), (4, 8), (5, 3)):
            yield DecodeConfiguration(per * multiprocessors, block_n, warps, stages)
    elif need.kernel == "prefill_attention":
        for block_m, block_n, warps, stages in itertools.product((128, 64), (64, 32, 128), (8, 4), (3, 5, 2)):
            yield PrefillConfiguration(block_m, block_n, warps, stages)
    elif need.shape[2] == 1:
        blocks = ((8, 512), (4, 1024), (16, 256), (4, 512), (2, 2048))
        for (block_n, block_k), warps in itertools.product(blocks, (4, 8)):
            yield SmallLinearConfiguration(block_n, block_k, warps, 3)
    else:
        for (block_n, block_k), stages in itertools.product(((16, 128), (16, 256), (32, 128), (32, 256)), (6, 4, 3)):
            yield SmallLinearConfiguration(block_n, block_k, 1 if block_n == 16 else 2, stages)

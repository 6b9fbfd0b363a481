"""The passes over the traced graph: one a file, in one order."""

from collections.abc import Callable

import torch

from pllm.build.passes.drop_assertions import drop_assertions
from pllm.build.passes.merge_linears import merge_linears
from pllm.build.passes.pack_experts import pack_experts
from pllm.build.passes.pack_linears import pack_linears
from pllm.build.pipeline import Build
from pllm.build.progress import StageProgress
from pllm.build.traced import Traced

__all__ = ["PASSES", "apply_passes", "run_passes"]

PASSES: tuple[Callable[[Traced, torch.dtype], str], ...] = (drop_assertions, merge_linears, pack_linears, pack_experts)
"""Each edits the graph in place and says what it did; the dtype is that of stored linear weights."""

_STORAGE = {"float32": torch.float32, "bf16": torch.bfloat16}


def run_passes(build: Build, progress: StageProgress) -> None:
    for said in apply_passes(build.exported, _STORAGE[build.recipe.quantization.weights]):
        progress.say(said)


def apply_passes(traced: Traced, storage: torch.dtype) -> list[str]:
    """Run every pass; what each says."""
    said = []
    for run in PASSES:
        said.append(f"{run.__name__}: {run(traced, storage)}")
        traced.drop_unused()
    return said

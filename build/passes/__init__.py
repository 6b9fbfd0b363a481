"""The passes over the traced graph: one a file, in one order for each kind of device."""

from collections.abc import Callable

import torch

from pllm.build.passes.drop_assertions import drop_assertions
from pllm.build.passes.drop_casts import drop_casts
from pllm.build.passes.fuse_cache_writes import fuse_cache_writes
from pllm.build.passes.fuse_norms import fuse_norms
from pllm.build.passes.fuse_rotary import fuse_rotary
from pllm.build.passes.fuse_silu import fuse_silu
from pllm.build.passes.gate_products import gate_products
from pllm.build.passes.merge_linears import merge_linears
from pllm.build.passes.pack_experts import pack_experts
from pllm.build.passes.pack_linears import pack_linears
from pllm.build.passes.quantize_linears import quantize_linears
from pllm.build.passes.select_rows import select_rows
from pllm.build.passes.small_products import small_products
from pllm.build.passes.step_shape import StepShape
from pllm.build.pipeline import Build
from pllm.build.progress import StageProgress
from pllm.build.quantized_checkpoint import QuantizedWeight
from pllm.build.traced import Traced, WeightForm

__all__ = ["CUDA_PASSES", "PASSES", "apply_cuda_passes", "apply_passes", "run_passes"]

PASSES: tuple[Callable[[Traced, torch.dtype], str], ...] = (
    drop_assertions,
    merge_linears,
    fuse_norms,
    fuse_silu,
    fuse_rotary,
    pack_linears,
    pack_experts,
    gate_products,
    select_rows,
)
"""For a CPU. Each edits the graph in place and says what it did; the dtype is that of stored linear weights."""

CUDA_PASSES: tuple[Callable[[Traced, StepShape], str], ...] = (
    drop_assertions,
    drop_casts,
    merge_linears,
    fuse_norms,
    fuse_silu,
    fuse_cache_writes,
    small_products,
)
"""For CUDA: a program is rewritten for the steps that it is for. Weights stay as the model has them."""

_WIDE = {"float32": torch.float32, "bf16": torch.bfloat16, "int8": torch.bfloat16, "int4": torch.bfloat16}
_WHOLE = {"int8": WeightForm.INT8, "int4": WeightForm.INT4}


def run_passes(build: Build, progress: StageProgress) -> None:
    weights = build.recipe.quantization.weights
    for said in apply_passes(build.exported, _WIDE[weights], _WHOLE.get(weights), stored=build.model_weights.quantized):
        progress.say(said)


def apply_passes(
    traced: Traced,
    storage: torch.dtype,
    whole: WeightForm | None = None,
    *,
    stored: Callable[[str], QuantizedWeight | None] = lambda _: None,
) -> list[str]:
    """Run every pass; what each says. ``whole``: linear weights are rounded to that form where they can be, and those
    that remain are stored in ``storage``. ``stored``: a parameter as the checkpoint has rounded it."""
    said = []
    for run in PASSES:
        if run is pack_linears and whole is not None:
            said.append(f"quantize_linears: {quantize_linears(traced, storage, form=whole, stored=stored)}")
            traced.drop_unused()
        done = pack_linears(traced, storage, stored=stored) if run is pack_linears else run(traced, storage)
        said.append(f"{run.__name__}: {done}")
        traced.drop_unused()
    return said


def apply_cuda_passes(traced: Traced, step: StepShape) -> list[str]:
    """Run every pass for CUDA; what each says."""
    said = []
    for run in CUDA_PASSES:
        said.append(f"{run.__name__}: {run(traced, step)}")
        traced.drop_unused()
    return said

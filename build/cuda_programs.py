"""The programs of an artifact for CUDA: which there are, and their graphs.

A compiled program cannot choose by the number of its rows, and kernels that suit one row do not suit eight, nor those a
hundred. So decoding has up to three programs, each for the buckets up to its most rows, and what is no decoding alone
(prompts, chunks of them, both together) has one.
"""

from dataclasses import dataclass

import torch

from pllm.build.export import paged_attention, trace
from pllm.build.model_source import load_config, skeleton
from pllm.build.passes import apply_cuda_passes
from pllm.build.passes.step_shape import SMALL_ROWS, StepShape
from pllm.build.pipeline import Build
from pllm.build.progress import StageProgress
from pllm.build.quantize import write_constants
from pllm.build.sampled_forward import SAMPLED_DIMS, SampledForward, sampler_inputs
from pllm.build.traced import Traced
from pllm.runtime.cuda.program_set import MIXED, decode_name
from pllm.runtime.manifest import DimRange, KvInfo
from pllm.runtime.scheduler_config import LOGIT_ROWS

__all__ = ["CudaProgram", "program_dims", "rewrite_programs", "step_shapes", "trace_program", "write_weights"]

_DTYPES = {"float32": torch.float32, "bf16": torch.bfloat16}


@dataclass(frozen=True, slots=True)
class CudaProgram:
    """One program before it is compiled."""

    name: str
    step: StepShape
    max_logit_rows: int
    traced: Traced


def step_shapes(max_num_seqs: int, max_num_batched_tokens: int) -> dict[str, StepShape]:
    """The programs by name, those with the fewest rows first."""
    most = [rows for rows in (1, SMALL_ROWS) if rows < max_num_seqs] + [max_num_seqs]
    shapes = {decode_name(rows): StepShape(rows, rows, decodes=True) for rows in most}
    return shapes | {MIXED: StepShape(max_num_batched_tokens, max_num_seqs, decodes=False)}


def program_dims(program: CudaProgram) -> dict[str, DimRange]:
    """The sizes that a program may be given."""
    step = program.step
    return SAMPLED_DIMS | {
        "tokens": DimRange(min=1, max=step.max_rows),
        "sequences": DimRange(min=1, max=step.max_sequences),
        "boundaries": DimRange(min=2, max=step.max_sequences + 1),
        "rows": DimRange(min=1, max=program.max_logit_rows),
    }


def trace_program(model: torch.nn.Module, kv: KvInfo, vocab_size: int, name: str, step: StepShape) -> CudaProgram:
    """A program of its own for steps of that shape, traced anew and rewritten."""
    rows = step.max_sequences if step.decodes else max(LOGIT_ROWS, step.max_sequences)
    traced = trace(
        model,
        kv,
        forward=lambda inner: SampledForward(inner, rows),
        inputs=sampler_inputs(vocab_size),
        dims=SAMPLED_DIMS,
    )
    apply_cuda_passes(traced, step)
    return CudaProgram(name, step, rows, traced)


def rewrite_programs(build: Build, progress: StageProgress) -> None:
    """The stage of the passes: the model's graph once for each program, rewritten for its steps."""
    engine = build.recipe.engine
    config = load_config(build.checkpoint)
    model = skeleton(config, paged_attention, _DTYPES[build.recipe.quantization.weights])
    programs = []
    for name, step in step_shapes(engine.max_num_seqs, max(engine.max_num_batched_tokens, engine.max_num_seqs)).items():
        progress.show(name)
        programs.append(trace_program(model, build.kv, build.model.vocab_size, name, step))
        progress.say(f"{name}: {len(programs[-1].traced.graph.nodes)} nodes for up to {step.max_rows} tokens")
    build.exported = tuple(programs)


def write_weights(build: Build, progress: StageProgress) -> None:
    """The stage of the weights: those of all programs, once, as the model has them."""
    write_constants(build, [program.traced for program in build.exported], progress)

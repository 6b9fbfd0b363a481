"""Certify on CUDA: against transformers in the artifact's own precision, with transformers in float32 as the referee.

Programs in bfloat16 are as far from float32 as bfloat16 is, and how far that is depends on the model. So the bound is
made of transformers' own error: teacher-forced on the tokens of the float32 reference, the programs' logits may lie
half as far again from it as those of transformers in bfloat16, in the root of the mean square and in the largest one.
"""

import json
from dataclasses import dataclass
from importlib import metadata
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from pllm.build.certify import Reference, continue_greedily, count_skipped, golden_prompts, kl_divergences
from pllm.build.model_source import load_reference
from pllm.build.pipeline import Build
from pllm.build.profile_cuda import served_model
from pllm.build.progress import StageProgress
from pllm.runtime.certificate import replay
from pllm.runtime.cuda.accelerator import Accelerator, open_accelerator
from pllm.runtime.engine import Engine
from pllm.runtime.errors import CertificateError
from pllm.runtime.manifest import CertificateSummary
from pllm.runtime.scheduler import Scheduler

__all__ = ["Errors", "certify_cuda"]

_ALLOWED = 1.5
"""Times transformers' own error in bfloat16."""
_EXACT = 0.001
"""The largest difference of a logit where everything is float32."""
_CONTEXT_ROOM = 512


@dataclass(frozen=True, slots=True)
class Errors:
    """Of logits from the float32 reference's, over all golden positions and tokens."""

    rms: float
    largest: float
    kl: float
    """Nats, mean over the positions."""

    @classmethod
    def of(cls, logits: list[NDArray[np.float32]], references: list[Reference]) -> "Errors":
        pairs = [(mine, theirs) for mine, (_, theirs) in zip(logits, references, strict=True)]
        square = sum(float(((mine - theirs).astype(np.float64) ** 2).sum()) for mine, theirs in pairs)
        count = sum(mine.size for mine, _ in pairs)
        return cls(
            rms=(square / count) ** 0.5,
            largest=max(float(np.abs(mine - theirs).max()) for mine, theirs in pairs),
            kl=float(np.concatenate([kl_divergences(theirs, mine) for mine, theirs in pairs]).mean()),
        )


def certify_cuda(build: Build, progress: StageProgress) -> None:
    """Raises CertificateError with the numbers where the programs are further from float32 than they may be."""
    verify, narrow = build.recipe.verify, build.recipe.quantization.weights != "float32"
    prompts = golden_prompts(build)
    accelerator = open_accelerator()
    progress.show("the reference in float32")
    references = _references(build, accelerator, prompts)
    theirs = None
    if narrow:
        progress.show("the reference in bfloat16")
        theirs = Errors.of(_own_logits(build, accelerator, references), references)
    progress.show("the compiled programs")
    tokens, mine = _of_programs(build, accelerator, prompts, references)
    bound = _checked(build, mine, theirs)
    uncompared = sum(
        count_skipped(reference, prompt, found, bound)
        for reference, prompt, found in zip(references, prompts, tokens, strict=True)
    )
    total = len(prompts) * verify.golden_tokens
    share = uncompared / total
    if isinstance(verify.max_skipped_share, float) and share > verify.max_skipped_share:
        raise CertificateError(
            f"{uncompared} of {total} tokens could not be compared: the reference's best two logits were close; "
            f"verify.max_skipped_share is {verify.max_skipped_share:g}: set another verify.golden_prompts"
        )
    version = metadata.version("transformers")
    build.certificate = CertificateSummary(
        reference=f"transformers {version}, float32" + (", beside its own bfloat16" if narrow else ""),
        num_prompts=len(prompts),
        num_tokens=total,
        max_logit_error=mine.largest,
        bound=bound,
        kl_divergence=mine.kl,
        skipped_share=share,
    )
    golden = [{"prompt_token_ids": prompt, "token_ids": found} for prompt, found in zip(prompts, tokens, strict=True)]
    build.staging.path("golden.json").write_text(json.dumps({"prompts": golden}) + "\n", encoding="utf-8")
    beside = "" if theirs is None else f", transformers' own bfloat16 {theirs.rms:.2g}"
    progress.say(f"error against float32, root mean square: {mine.rms:.2g}{beside}")
    progress.say(f"{total} tokens equal but for {uncompared} too close to call; KL divergence {mine.kl:.2g} nats")


def _checked(build: Build, mine: Errors, theirs: Errors | None) -> float:
    """The bound on a logit's error, which holds."""
    asked = build.recipe.verify.max_logit_error
    bound = _EXACT if theirs is None else _ALLOWED * theirs.largest
    bound = asked if isinstance(asked, float) else bound
    if theirs is not None and not mine.rms <= _ALLOWED * theirs.rms:
        raise CertificateError(
            f"the programs are further from float32 than {_ALLOWED:g} times transformers' bfloat16: root mean square "
            f"{mine.rms:.3g} against {theirs.rms:.3g}"
        )
    if not mine.largest <= bound:
        raise CertificateError(
            f"the programs differ from their reference: verify.max_logit_error is {bound:.3g}, and {mine.largest:.3g} "
            f"was found"
        )
    most = build.recipe.verify.max_kl_divergence
    if isinstance(most, float) and not mine.kl <= most:
        raise CertificateError(f"verify.max_kl_divergence is {most:.3g}, and {mine.kl:.3g} was found")
    return bound


def _references(build: Build, accelerator: Accelerator, prompts: list[list[int]]) -> list[Reference]:
    model: Any = load_reference(build.checkpoint).to(accelerator.device)  # type: ignore[arg-type]
    found = [continue_greedily(model, prompt, build.recipe.verify.golden_tokens) for prompt in prompts]
    del model
    accelerator.release()
    return found


def _own_logits(build: Build, accelerator: Accelerator, references: list[Reference]) -> list[NDArray[np.float32]]:
    """transformers' logits in bfloat16 at the same positions."""
    model: Any = load_reference(build.checkpoint, torch.bfloat16).to(accelerator.device)  # type: ignore[arg-type]
    found = []
    with torch.no_grad():
        for ids, _ in references:
            inputs = torch.tensor([ids], device=accelerator.device)
            found.append(model(inputs, use_cache=False).logits[0].float().cpu().numpy())
    del model
    accelerator.release()
    return found


def _of_programs(
    build: Build, accelerator: Accelerator, prompts: list[list[int]], references: list[Reference]
) -> tuple[list[tuple[int, ...]], Errors]:
    """The engine's tokens after the prompts, and the programs' errors on the references' tokens."""
    model = served_model(build, accelerator)
    try:
        model.load_weights()
        block, config = build.kv.block_size, model.spec.config
        per_sequence = -(-min(config.max_model_len, _CONTEXT_ROOM) // block)
        model.make_pool(max(config.num_blocks, per_sequence * min(config.max_num_seqs, len(prompts))))
        model.capture()
        engine = Engine(Scheduler(model.step_device.config), model.runner())
        tokens = replay(engine, [(tuple(prompt), build.recipe.verify.golden_tokens) for prompt in prompts])
        return tokens, Errors.of([model.logits(ids) for ids, _ in references], references)
    finally:
        model.close()

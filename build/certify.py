"""Certify: the compiled program against transformers in float32; the build fails where they differ.

What equal means: teacher-forced on the reference's own tokens, every logit within the recipe's bound; and the engine's
greedy tokens equal wherever the reference's best two logits lie further apart than twice that bound.
"""

import json
from collections.abc import Sequence
from importlib import metadata
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from pllm.build.model_source import load_reference
from pllm.build.pipeline import Build
from pllm.build.progress import StageProgress
from pllm.build.rehearsal import RehearsalSpec, rehearsal
from pllm.runtime.certificate import replay
from pllm.runtime.errors import CertificateError
from pllm.runtime.manifest import CertificateSummary

__all__ = ["certify"]

_LENGTHS = (3, 40, 17, 1, 33, 64, 16, 100)
"""Of the prompts, in turn: shorter and longer than a block, at its edges."""


def certify(build: Build, progress: StageProgress) -> None:
    """Raises CertificateError with the numbers where the artifact and its reference disagree."""
    verify = build.recipe.verify
    rng = np.random.default_rng(0)
    prompts = [
        rng.integers(0, build.model.vocab_size, _LENGTHS[i % len(_LENGTHS)]).tolist()
        for i in range(verify.golden_prompts)
    ]
    progress.show("the reference")
    model = load_reference(build.checkpoint)
    references = [_continue(model, prompt, verify.golden_tokens) for prompt in prompts]
    del model
    with rehearsal(RehearsalSpec.of(build)) as opened:
        progress.show("the compiled program")
        tokens = replay(opened.engine(), [(tuple(prompt), verify.golden_tokens) for prompt in prompts])
        error = max(
            float(np.abs(opened.forward([(0, ids)], every_position=True) - logits).max()) for ids, logits in references
        )
    if not error <= verify.max_logit_error:
        raise CertificateError(
            f"a logit differs from the reference's by {error:.3g}, and verify.max_logit_error is "
            f"{verify.max_logit_error:g}"
        )
    skipped = sum(
        _skipped(reference, prompt, mine, verify.max_logit_error)
        for reference, prompt, mine in zip(references, prompts, tokens, strict=True)
    )
    total = len(prompts) * verify.golden_tokens
    if skipped / total > verify.max_skipped_share:
        raise CertificateError(
            f"{skipped} of {total} tokens could not be compared, because the reference's best two logits were close; "
            f"verify.max_skipped_share is {verify.max_skipped_share:g}: set another verify.golden_prompts"
        )
    build.certificate = CertificateSummary(
        reference=f"transformers {metadata.version('transformers')}, float32",
        num_prompts=len(prompts),
        num_tokens=total,
        max_logit_error=error,
        bound=verify.max_logit_error,
        skipped_share=skipped / total,
    )
    golden = [{"prompt_token_ids": prompt, "token_ids": mine} for prompt, mine in zip(prompts, tokens, strict=True)]
    build.staging.path("golden.json").write_text(json.dumps({"prompts": golden}) + "\n", encoding="utf-8")
    progress.say(f"{total} tokens equal but for {skipped} too close to call; largest logit error {error:.2g}")


def _continue(model: Any, prompt: list[int], count: int) -> tuple[list[int], NDArray[np.float32]]:
    """The prompt with the reference's greedy continuation but for the last token, and the logits at each position."""
    ids = list(prompt)
    with torch.no_grad():
        for _ in range(count - 1):
            ids.append(int(model(torch.tensor([ids]), use_cache=False, logits_to_keep=1).logits[0, -1].argmax()))
        logits = model(torch.tensor([ids]), use_cache=False).logits[0]
    return ids, logits.numpy()


def _skipped(
    reference: tuple[list[int], NDArray[np.float32]], prompt: list[int], tokens: Sequence[int], bound: float
) -> int:
    """How many tokens were not compared: those from the first whose margin is too small to decide."""
    _, logits = reference
    if len(tokens) != len(logits) - len(prompt) + 1:
        raise CertificateError(f"a golden prompt ended after {len(tokens)} tokens: its logits are not finite")
    for step, token in enumerate(tokens):
        row = logits[len(prompt) - 1 + step]
        second, first = np.partition(row, -2)[-2:]
        if first - second <= 2 * bound:
            return len(tokens) - step
        if token != int(row.argmax()):
            raise CertificateError(
                f"token {step} after {len(prompt)} prompt tokens is {token}, the reference's {int(row.argmax())}, "
                f"with a margin of {first - second:.3g}"
            )
    return 0

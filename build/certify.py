"""Certify: the compiled program against transformers in float32; the build fails where they differ.

What equal means: teacher-forced on the reference's own tokens, every logit within the recipe's bound; and the engine's
greedy tokens equal wherever the reference's best two logits lie further apart than twice that bound. The divergence of
the distributions says what that comes to: where weights are rounded, it is their quality.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
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

__all__ = ["Reference", "certify", "continue_greedily", "count_skipped", "golden_prompts", "kl_divergences"]

_LENGTHS = (3, 40, 17, 1, 33, 64, 16, 100)
"""Of the prompts, in turn: shorter and longer than a block, at its edges."""


_WEIGHTS = {"int8": (0.05, 0.02), "int4": (0.25, 0.3)}
_KV = {"bf16": (0.02, 0.001), "int8": (0.05, 0.005)}
"""What rounding may cost: a logit's share of the reference's spread, and nats. Of two kinds the larger one holds."""


@dataclass(frozen=True, slots=True)
class _Bounds:
    """What a recipe's [verify] section comes to."""

    logit_error: float
    kl_divergence: float
    skipped_share: float

    @classmethod
    def of(cls, build: Build, references: Sequence["Reference"]) -> "_Bounds":
        verify, stored = build.recipe.verify, build.recipe.quantization
        spread = float(np.mean([np.ptp(logits, axis=1).mean() for _, logits in references]))
        rounded = [allowed for allowed in (_WEIGHTS.get(stored.weights), _KV.get(stored.kv)) if allowed]
        auto = cls(0.001, 0.00001, 0.05)
        if rounded:
            auto = cls(max(share for share, _ in rounded) * spread, max(divergence for _, divergence in rounded), 1.0)
        asked = (verify.max_logit_error, verify.max_kl_divergence, verify.max_skipped_share)
        decided = (auto.logit_error, auto.kl_divergence, auto.skipped_share)
        return cls(*(given if isinstance(given, float) else own for given, own in zip(asked, decided, strict=True)))


Reference = tuple[list[int], NDArray[np.float32]]
"""Tokens, and transformers' logits at each of them."""


def certify(build: Build, progress: StageProgress) -> None:
    """Raises CertificateError with the numbers where the artifact and its reference disagree."""
    verify = build.recipe.verify
    prompts = golden_prompts(build)
    progress.show("the reference")
    model = load_reference(build.checkpoint)
    references = [continue_greedily(model, prompt, verify.golden_tokens) for prompt in prompts]
    del model
    bounds = _Bounds.of(build, references)
    with rehearsal(RehearsalSpec.of(build)) as opened:
        progress.show("the compiled program")
        tokens = replay(opened.engine(), [(tuple(prompt), verify.golden_tokens) for prompt in prompts])
        logits = [opened.forward([(0, ids)], every_position=True).copy() for ids, _ in references]
    error = max(float(np.abs(mine - theirs).max()) for mine, (_, theirs) in zip(logits, references, strict=True))
    pairs = zip(logits, references, strict=True)
    divergence = float(np.concatenate([kl_divergences(theirs, mine) for mine, (_, theirs) in pairs]).mean())
    for name, found, bound in (
        ("max_logit_error", error, bounds.logit_error),
        ("max_kl_divergence", divergence, bounds.kl_divergence),
    ):
        if not found <= bound:
            raise CertificateError(
                f"the program differs from its reference: verify.{name} is {bound:.3g}, and {found:.3g} was found"
            )
    skipped = sum(
        count_skipped(reference, prompt, mine, bounds.logit_error)
        for reference, prompt, mine in zip(references, prompts, tokens, strict=True)
    )
    total = len(prompts) * verify.golden_tokens
    if skipped / total > bounds.skipped_share:
        raise CertificateError(
            f"{skipped} of {total} tokens could not be compared, because the reference's best two logits were close; "
            f"verify.max_skipped_share is {bounds.skipped_share:g}: set another verify.golden_prompts"
        )
    build.certificate = CertificateSummary(
        reference=f"transformers {metadata.version('transformers')}, float32",
        num_prompts=len(prompts),
        num_tokens=total,
        max_logit_error=error,
        bound=bounds.logit_error,
        kl_divergence=divergence,
        skipped_share=skipped / total,
    )
    golden = [{"prompt_token_ids": prompt, "token_ids": mine} for prompt, mine in zip(prompts, tokens, strict=True)]
    build.staging.path("golden.json").write_text(json.dumps({"prompts": golden}) + "\n", encoding="utf-8")
    progress.say(
        f"{total} tokens equal but for {skipped} too close to call; largest logit error {error:.2g} of "
        f"{bounds.logit_error:.2g}, KL divergence {divergence:.2g} nats"
    )


def golden_prompts(build: Build) -> list[list[int]]:
    """Prompts of random tokens, the same in every build of a recipe."""
    rng = np.random.default_rng(0)
    return [
        rng.integers(0, build.model.vocab_size, _LENGTHS[i % len(_LENGTHS)]).tolist()
        for i in range(build.recipe.verify.golden_prompts)
    ]


def kl_divergences(reference: NDArray[np.float32], mine: NDArray[np.float32]) -> NDArray[np.float64]:
    """Of each row's distribution from the reference's, in nats."""
    p, q = (
        wide - np.logaddexp.reduce(wide, axis=1, keepdims=True)
        for wide in (reference.astype(float), mine.astype(float))
    )
    total: NDArray[np.float64] = (np.exp(p) * (p - q)).sum(axis=1)
    return total


def continue_greedily(model: Any, prompt: list[int], count: int) -> Reference:
    """The prompt with the reference's greedy continuation but for the last token, and the logits at each position."""
    ids = list(prompt)
    with torch.no_grad():
        for _ in range(count - 1):
            given = torch.tensor([ids], device=model.device)
            ids.append(int(model(given, use_cache=False, logits_to_keep=1).logits[0, -1].argmax()))
        logits = model(torch.tensor([ids], device=model.device), use_cache=False).logits[0]
    return ids, logits.float().cpu().numpy()


def count_skipped(reference: Reference, prompt: list[int], tokens: Sequence[int], bound: float) -> int:
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

"""Artifacts of tiny random models, made by the whole pipeline, and the engine over them."""

import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from pllm.build.checkpoint import Checkpoint
from pllm.build.pipeline import build_artifact
from pllm.build.progress import Progress
from pllm.build.recipe import Recipe
from pllm.runtime.engine import Engine
from pllm.runtime.sampling_params import SamplingParams
from pllm.runtime.sequence import Request
from pllm.runtime.step import TokenDelta, TokenLogprobs
from tests.build.graphs import BLOCK_SIZE, checkpoint_of

MAX_NUM_SEQS = 4
LIMITS = (
    f"engine.block_size={BLOCK_SIZE}",
    "engine.max_model_len=128",
    f"engine.max_num_seqs={MAX_NUM_SEQS}",
    "engine.max_num_batched_tokens=32",
    "verify.golden_prompts=2",
    "verify.golden_tokens=4",
    "verify.max_logit_error=0.00005",
)
"""A step holds fewer tokens than the longest prompts have, so that these are computed in chunks beside others. The
bound is narrower than the usual one: models this small have near ties, which a wider one would not compare."""


@dataclass(frozen=True, slots=True)
class Built:
    """An artifact and the checkpoint that it was made of."""

    artifact: Path
    checkpoint: Checkpoint

    def copy_to(self, target: Path) -> Path:
        return shutil.copytree(self.artifact, target)


class Builds:
    """Families' artifacts in a folder, each built when it is first asked for."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._built: dict[tuple[str, ...], Built] = {}

    def of(self, family: str, *overrides: str) -> Built:
        key = (family, *overrides)
        if key not in self._built:
            folder = self._folder / "-".join(word.replace("=", "-") for word in key)
            recipe = recipe_of(family, folder)
            build_artifact(Recipe.load(recipe, [*LIMITS, *overrides]), folder / "artifact", Progress())
            self._built[key] = Built(folder / "artifact", Checkpoint(folder / family, label=family))
        return self._built[key]


def recipe_of(family: str, folder: Path) -> Path:
    """A recipe on the disk beside the checkpoint that it names."""
    checkpoint_of(family, folder / family)
    recipe = folder / f"{family}.toml"
    recipe.write_text(f'[model]\nsource = "{family}"\n', encoding="utf-8")
    return recipe


@dataclass(slots=True)
class Answer:
    """What one request came to."""

    token_ids: list[int] = field(default_factory=list)
    logprobs: list[TokenLogprobs] = field(default_factory=list)
    prompt_logprobs: list[TokenLogprobs] = field(default_factory=list)
    num_cached_tokens: int = 0
    finish_reason: str | None = None

    def take(self, delta: TokenDelta) -> None:
        self.token_ids += delta.token_ids
        self.logprobs += delta.logprobs or ()
        self.prompt_logprobs += delta.prompt_logprobs or ()
        self.num_cached_tokens = max(self.num_cached_tokens, delta.num_cached_tokens)
        self.finish_reason = delta.finish_reason


def answers(engine: Engine, prompts: Sequence[Sequence[int]], params: SamplingParams) -> list[Answer]:
    """All prompts at once, to their ends."""
    found = {str(i): Answer() for i in range(len(prompts))}
    for name, prompt in zip(found, prompts, strict=True):
        engine.submit(Request(name, tuple(prompt), params, eos_token_ids=(2,), arrival_time=time.monotonic()))
    while engine.has_unfinished:
        for delta in engine.step():
            found[delta.request_id].take(delta)
    return list(found.values())

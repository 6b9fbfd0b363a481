"""Families from recipe to tokens: what the engine says over their artifacts is what transformers generates."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import pytest
import torch

from pllm.build.checkpoint import Checkpoint
from pllm.build.model_source import load_reference
from pllm.runtime.artifact import Artifact
from pllm.runtime.engine_core import EngineCore
from pllm.runtime.sampling_params import SamplingParams
from pllm.runtime.step import TokenLogprobs
from tests.build.graphs import BLOCK_SIZE, FAMILIES, VOCABULARY

from .artifacts import Builds, answers

ALWAYS = ("llama", "gemma2", "gpt_oss")
"""Between them: llama3 RoPE; soft cap, sliding window, a tied head; sinks, biases, experts. The quickstart model, of
tests/e2e, has QK-norm."""
NEW_TOKENS = 12
LENGTHS = (1, 5, 21, 37, 53)  # within a block, beyond one, beyond a step; one more than run at once
SHARED = 36  # tokens of a prompt that others begin with: two blocks and a part
NUM_TOP = 5
GREEDY = SamplingParams(temperature=0, max_tokens=NEW_TOKENS, ignore_eos=True, logprobs=NUM_TOP)
SCORED = SamplingParams(temperature=0, max_tokens=1, prompt_logprobs=NUM_TOP)
FLOAT32_BOUND = 1e-4
"""Of a log probability: float32 arithmetic in another order."""
BFLOAT16_KV_BOUND = 0.04
"""Of a log probability: keys and values rounded to 8 bits of mantissa."""
MAX_SKIPPED_SHARE = 0.25
CALL_TORCH = ("mixtral", "qwen3_moe", "gpt_oss")
"""Families whose programs sort, and so need torch where they run."""


@dataclass(frozen=True, slots=True)
class Continued:
    """A prompt, the reference's greedy continuation, and its log probabilities before each token of that."""

    prompt: list[int]
    token_ids: list[int]
    logprobs: torch.Tensor


@pytest.fixture(scope="module")
def texts() -> list[list[int]]:
    generator = torch.Generator().manual_seed(3)
    return [torch.randint(3, VOCABULARY, (length,), generator=generator).tolist() for length in LENGTHS]


@pytest.mark.parametrize(
    "family", [*ALWAYS, *(pytest.param(name, marks=pytest.mark.nightly, id=f"{name}-nightly") for name in FAMILIES)]
)
def test_the_artifact_says_what_transformers_says(family: str, builds: Builds, texts: list[list[int]]) -> None:
    built = builds.of(family)
    needed = Artifact.read(built.artifact).manifest.requires.torch
    if family in CALL_TORCH:
        assert needed is not None
    elif torch.__version__ >= "2.13":  # an older one multiplies angles by a product of its own
        assert needed is None
    core = EngineCore.open(built.artifact)
    try:
        batch = continued(built.checkpoint, texts)
        together = answers(core.engine, texts, GREEDY)
        for answer, expected in zip(together, batch, strict=True):
            assert agree(answer.token_ids, answer.logprobs, expected, FLOAT32_BOUND) > NEW_TOKENS // 2
            assert answer.num_cached_tokens == 0
        assert max(len(set(answer.token_ids)) for answer in together) > NEW_TOKENS // 2, "it repeats itself"

        longer = [[*text[:SHARED], *tail] for text in texts if len(text) > SHARED for tail in ([9, 8, 7], [4])]
        for answer, expected in zip(
            answers(core.engine, longer, GREEDY), continued(built.checkpoint, longer), strict=True
        ):
            assert agree(answer.token_ids, answer.logprobs, expected, FLOAT32_BOUND) > NEW_TOKENS // 2
            assert answer.num_cached_tokens == SHARED // BLOCK_SIZE * BLOCK_SIZE

        core.engine.reset_prefix_cache()
        for text, answer in zip(texts, together, strict=True):
            (alone,) = answers(core.engine, [text], GREEDY)
            assert alone.token_ids == answer.token_ids
        assert skipped_share(core, batch, FLOAT32_BOUND) <= MAX_SKIPPED_SHARE
    finally:
        core.close()


@pytest.mark.nightly
@pytest.mark.parametrize("family", ["llama", "gpt_oss"])
def test_a_cache_in_bfloat16_stays_within_its_bound(family: str, builds: Builds, texts: list[list[int]]) -> None:
    built = builds.of(family, "quantization.kv=bf16", "verify.max_logit_error=auto")
    core = EngineCore.open(built.artifact)
    try:
        assert core.manifest.kv.dtype == "bfloat16"
        batch = continued(built.checkpoint, texts)
        compared = sum(
            agree(answer.token_ids, answer.logprobs, expected, BFLOAT16_KV_BOUND)
            for answer, expected in zip(answers(core.engine, texts, GREEDY), batch, strict=True)
        )
        assert compared > len(texts)
        assert skipped_share(core, batch, BFLOAT16_KV_BOUND) <= MAX_SKIPPED_SHARE
    finally:
        core.close()


def continued(checkpoint: Checkpoint, texts: Iterable[list[int]]) -> list[Continued]:
    """By transformers' own generation, its own cache and all."""
    reference = load_reference(checkpoint)
    reference.generation_config.eos_token_id = None
    found = []
    for text in texts:
        out = reference.generate(
            torch.tensor([text]), do_sample=False, max_new_tokens=NEW_TOKENS, output_logits=True,
            return_dict_in_generate=True,
        )  # fmt: skip
        logprobs = torch.cat(out.logits).log_softmax(-1)
        found.append(Continued(text, out.sequences[0, len(text) :].tolist(), logprobs))
    return found


def agree(token_ids: Sequence[int], logprobs: Sequence[TokenLogprobs], expected: Continued, bound: float) -> int:
    """How many tokens are the same, up to the first where the reference's margin is too small to decide."""
    assert len(token_ids) == len(logprobs) == NEW_TOKENS
    for i, (mine, theirs) in enumerate(zip(token_ids, expected.token_ids, strict=True)):
        assert_close(logprobs[i], expected.logprobs[i], bound)
        if margin(expected.logprobs[i]) <= 2 * bound:
            return i
        assert mine == theirs, f"token {i} after {len(expected.prompt)}"
    return NEW_TOKENS


def skipped_share(core: EngineCore, batch: Iterable[Continued], bound: float) -> float:
    """Teacher-forced: on the reference's own tokens, every log probability is within the bound, and the likeliest token
    is the reference's but where its margin is too small to decide. The share of those."""
    skipped = total = 0
    for expected in batch:
        (scored,) = answers(core.engine, [[*expected.prompt, *expected.token_ids]], SCORED)
        for i, said in enumerate(scored.prompt_logprobs[-NEW_TOKENS:]):
            assert_close(said, expected.logprobs[i], bound)
            total += 1
            if margin(expected.logprobs[i]) <= 2 * bound:
                skipped += 1
            else:
                assert said.top[0][0] == expected.token_ids[i]
    return skipped / total


def margin(logprobs: torch.Tensor) -> float:
    first, second = logprobs.topk(2).values.tolist()
    return first - second


def assert_close(said: TokenLogprobs, logprobs: torch.Tensor, bound: float) -> None:
    assert len(said.top) >= NUM_TOP
    for token_id, logprob, _ in said.top:
        assert abs(logprob - float(logprobs[token_id])) <= bound

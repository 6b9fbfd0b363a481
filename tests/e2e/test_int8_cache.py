"""The quickstart model over a KV cache in int8: everything real. Nightly, for it is a build of its own."""

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from pllm import LLM, SamplingParams
from pllm.build.pipeline import build_artifact
from pllm.build.progress import Progress
from pllm.build.recipe import Recipe

from .conftest import ROOT

pytestmark = pytest.mark.nightly

STORY = "Once upon a time, there was a young fox named Mia who lived by the sea. Mia loved to sing songs. "
PROMPTS = [3 * STORY + end for end in ("One day", "从前有", "Then 17 + 25")]


@pytest.fixture(scope="module")
def narrow(tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("narrow") / "quickstart-kv-int8"
    recipe = Recipe.load(ROOT / "recipes" / "quickstart.toml", ["quantization.kv=int8"])
    build_artifact(recipe, target, Progress())
    return target


@pytest.fixture(scope="module")
def opened(narrow: Path) -> Iterator[LLM]:
    with LLM(str(narrow)) as llm:
        yield llm


def pllm(*arguments: str) -> str:
    done = subprocess.run([sys.executable, "-m", "pllm", *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_it_answers(opened: LLM) -> None:
    question = [{"role": "user", "content": "What is 17 + 25?"}]
    (output,) = opened.chat(question, SamplingParams(temperature=0, max_tokens=32), use_tqdm=False)
    assert output.outputs[0].text == "17 + 25 = 42."


def test_it_proves_itself(narrow: Path) -> None:
    said = pllm("verify", str(narrow))
    assert said.count("the same tokens") == 4


def test_shared_and_copied_blocks_keep_their_scales(opened: LLM) -> None:
    """Found prefixes, and the block that several answers to one prompt begin in, which all but one of them copy."""
    params = SamplingParams(temperature=0, max_tokens=24, ignore_eos=True)
    alone = []
    for prompt in PROMPTS:
        opened.reset_prefix_cache()
        alone += opened.generate(prompt, params, use_tqdm=False)
    assert all(not output.num_cached_tokens for output in alone)
    together = opened.generate(PROMPTS, params, use_tqdm=False)
    assert all(output.num_cached_tokens for output in together)
    several, single = (
        opened.generate(
            PROMPTS, SamplingParams(n=n, seed=1, temperature=1.5, max_tokens=24, ignore_eos=True), use_tqdm=False
        )
        for n in (3, 1)
    )
    for one, cached, many, first in zip(alone, together, several, single, strict=True):
        assert one.outputs[0].token_ids == cached.outputs[0].token_ids
        assert many.outputs[0].token_ids == first.outputs[0].token_ids
    assert any(len({tuple(answer.token_ids) for answer in many.outputs}) > 1 for many in several)


def test_three_times_as_many_requests_fit(narrow: Path, artifact: Path) -> None:
    """In the memory of as many blocks of float32."""
    blocks, fits = 400, []
    for built in (artifact, narrow):
        ledger = json.loads((built / "manifest.json").read_text(encoding="utf-8"))["memory"]
        fixed = ledger["weights"] + ledger["activations"] + ledger["runtime"]
        wide = json.loads((artifact / "manifest.json").read_text(encoding="utf-8"))["memory"]["kv_block"]
        said = pllm("check", str(built), "--memory", str(fixed + blocks * wide), "--max-num-seqs", "1000")
        fits.append([int(count) for _, count in re.findall(r"│\s+(\d+)\s+│\s+(\d+)\s+│", said)])
    assert len(fits[0]) == len(fits[1]) > 1
    for before, after in zip(*fits, strict=True):
        assert after >= 3 * before

"""The engine on a GPU: an artifact built there, its tokens, its graphs beside the eager program, its memory.

What can be checked without a GPU, on a double, is in test_cuda_engine.py.
"""

from contextlib import closing
from pathlib import Path

import pytest
import torch

from pllm.build.pipeline import build_artifact
from pllm.build.progress import Progress
from pllm.build.recipe import Recipe
from pllm.runtime.artifact import Artifact
from pllm.runtime.certificate import verify_golden
from pllm.runtime.engine_core import EngineCore
from pllm.runtime.sampling_params import SamplingParams

from .artifacts import LIMITS, answers, recipe_of
from .replays import replays_equal_eager_runs

pytestmark = pytest.mark.gpu


@pytest.fixture(scope="module", params=["float32", "bf16"])
def artifact(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Its certificate is checked while it is built: tokens and logits against transformers."""
    folder = tmp_path_factory.mktemp(request.param)
    limits = [limit for limit in LIMITS if not limit.startswith("verify.max_logit_error")]
    asked = [*limits, "device.kind=cuda", f"quantization.weights={request.param}"]
    build_artifact(Recipe.load(recipe_of("llama", folder), asked), folder / "artifact", Progress())
    return folder / "artifact"


def test_it_verifies_itself(artifact: Path) -> None:
    findings = list(verify_golden(Artifact.open(artifact)))
    assert all(finding.agrees for finding in findings if finding.agrees is not None)


def test_a_replay_equals_the_eager_program_to_the_bit(artifact: Path) -> None:
    with closing(EngineCore.open(artifact)) as core:
        replays_equal_eager_runs(core)


def test_a_run_allocates_nothing_on_the_device(artifact: Path) -> None:
    params = SamplingParams(temperature=0.7, top_p=0.9, frequency_penalty=0.2, max_tokens=40, ignore_eos=True)
    prompts = [[7 + i] * (20 + 9 * i) for i in range(8)]
    with closing(EngineCore.open(artifact)) as core:
        answers(core.engine, prompts[:2], params)
        before = torch.cuda.memory_stats()["num_device_alloc"]
        found = answers(core.engine, prompts, params)
        assert torch.cuda.memory_stats()["num_device_alloc"] == before
    assert [len(answer.token_ids) for answer in found] == [40] * 8

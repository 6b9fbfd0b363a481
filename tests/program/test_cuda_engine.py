"""Artifacts for CUDA, built, opened and served where no GPU is (`cuda_double`): the tokens are those of the CPU's."""

from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pllm.build.pipeline import build_artifact
from pllm.build.progress import Progress
from pllm.build.recipe import Recipe
from pllm.runtime.artifact import Artifact
from pllm.runtime.certificate import verify_golden
from pllm.runtime.engine_core import EngineCore
from pllm.runtime.errors import ArtifactMismatchError, DoesNotFitError
from pllm.runtime.latencies import Latencies
from pllm.runtime.sampling_params import SamplingParams

from .artifacts import LIMITS, Built, answers, recipe_of
from .cuda_double import GPU, HELD, STAGES, gpu_machine
from .replays import replays_equal_eager_runs

PROMPTS = [[5, 9, 40], [*range(20, 60)], [7], [3, 3, 3, 3, 90, 12, 44]]
PARAMS = {
    "greedy": SamplingParams(temperature=0, max_tokens=9),
    "repetition": SamplingParams(temperature=0, max_tokens=9, repetition_penalty=1.7),
    "frequency and presence": SamplingParams(
        temperature=0, max_tokens=12, frequency_penalty=0.9, presence_penalty=0.4, ignore_eos=True
    ),
    "log probabilities": SamplingParams(temperature=0, max_tokens=5, logprobs=3, prompt_logprobs=2),
    "masks": SamplingParams(temperature=0, max_tokens=5, logit_bias={4: 9.0, 5: 8.0}, min_tokens=3),
}


def built_for_cuda(folder: Path, *overrides: str) -> Path:
    recipe = recipe_of("llama", folder)
    narrower = [limit for limit in LIMITS if not limit.startswith("verify.max_logit_error")]
    asked = Recipe.load(recipe, [*narrower, "device.kind=cuda", *overrides])
    with gpu_machine([]):
        build_artifact(asked, folder / "artifact", Progress(), stages=STAGES)
    return folder / "artifact"


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return built_for_cuda(tmp_path_factory.mktemp("cuda"), "quantization.weights=float32")


@pytest.mark.parametrize("kind", PARAMS)
def test_the_tokens_are_those_of_the_cpus_engine(kind: str, artifact: Path, tiny: Built) -> None:
    calls: list[str] = []
    with closing(EngineCore.open(tiny.artifact)) as core:
        expected = answers(core.engine, PROMPTS, PARAMS[kind])
    with gpu_machine(calls), closing(EngineCore.open(artifact)) as core:
        found = answers(core.engine, PROMPTS, PARAMS[kind])
    assert [answer.token_ids for answer in found] == [answer.token_ids for answer in expected]
    for mine, theirs in zip(found, expected, strict=True):
        ours, those = ([(e.token_id, e.rank) for e in answer.logprobs] for answer in (mine, theirs))
        assert ours == those
        assert len(mine.prompt_logprobs) == len(theirs.prompt_logprobs)
    decodes_on_device = kind not in ("log probabilities", "masks")
    assert ("replay 4" in calls) == decodes_on_device


def test_every_bucket_is_captured_once_the_largest_first_before_anything_is_served(artifact: Path) -> None:
    calls: list[str] = []
    told: list[str] = []
    with gpu_machine(calls), closing(EngineCore.open(artifact, opened_part=told.append)) as core:
        assert calls == ["capture 4", "capture 2", "capture 1"]
        assert core.notices == ()
        answers(core.engine, PROMPTS[:1], PARAMS["greedy"])
    assert set(calls[3:]) == {"replay 1"}
    graphs = [part for part in told if part.startswith("graph of")]
    assert graphs == ["graph of 4", "graph of 2", "graph of 1"]
    assert told[:3] == ["manifest", "torch", "weights and programs"]
    assert told[-2:] == ["KV pool", "hashes"]


def test_fewer_sequences_have_fewer_buckets(artifact: Path) -> None:
    calls: list[str] = []
    with gpu_machine(calls), closing(EngineCore.open(artifact, max_num_seqs=3)) as core:
        assert calls == ["capture 3", "capture 2", "capture 1"]
        assert len(answers(core.engine, PROMPTS, PARAMS["greedy"])) == len(PROMPTS)


def test_the_pool_is_planned_anew_from_what_is_free(artifact: Path) -> None:
    ledger = Artifact.read(artifact).manifest.memory
    room = int((ledger.fixed + 20 * ledger.kv_block) / 0.9) - HELD + 1
    with gpu_machine([], room), closing(EngineCore.open(artifact)) as core:
        assert core.plan.num_blocks == 20 < core.plan.wanted_blocks
        assert len(core.notices) == 1 and "20 blocks" in core.notices[0]
        assert len(answers(core.engine, PROMPTS, PARAMS["greedy"])) == len(PROMPTS)
    with gpu_machine([], room - 14 * ledger.kv_block), pytest.raises(DoesNotFitError, match="128 tokens does not fit"):
        EngineCore.open(artifact)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"sm": "sm_80"}, "compiled for sm_90, and NVIDIA H100 is sm_80"),
        ({"driver_cuda": 12080}, "update the NVIDIA driver"),
    ],
)
def test_another_architecture_or_driver_is_refused_before_anything_is_loaded(
    changes: dict[str, Any], said: str, artifact: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pllm.runtime.cuda.open_model.open_model", pytest.fail)
    with gpu_machine([], gpu=replace(GPU, **changes)), pytest.raises(ArtifactMismatchError, match=said):
        EngineCore.open(artifact)


def test_another_gpu_of_the_architecture_runs_and_says_so(artifact: Path) -> None:
    with gpu_machine([], gpu=replace(GPU, name="NVIDIA H200")), closing(EngineCore.open(artifact)) as core:
        assert [notice for notice in core.notices if "tuned and measured on NVIDIA H100" in notice]


def test_what_the_artifact_says_of_itself(artifact: Path) -> None:
    opened = Artifact.read(artifact)
    manifest = opened.manifest
    assert [program.name for program in manifest.programs] == ["decode-1", "decode-4", "mixed"]
    assert [output.name for output in manifest.programs[0].outputs] == ["logits", "tokens"]
    rows = Latencies.read(opened.path(manifest.latency)).rows
    assert {(row.num_seqs, row.context) for row in rows if row.num_tokens == row.num_seqs} >= {
        (1, 127),
        (2, 127),
        (4, 127),
    }
    assert {row.num_tokens for row in rows if row.num_seqs == 1} == {1, 32}
    gpu = manifest.requires.gpu
    assert gpu is not None
    first, *others = gpu.kernels
    assert first.us is None  # it could not run with any configuration: the shipped one is kept
    assert all(choice.us is not None for choice in others)
    assert {choice.kernel for choice in gpu.kernels} == {"small_linear", "decode_attention", "prefill_attention"}
    assert all(choice.values["block_n"] == 128 for choice in others if choice.kernel != "small_linear")


def test_it_verifies_itself(artifact: Path) -> None:
    with gpu_machine([]):
        findings = list(verify_golden(Artifact.open(artifact)))
    assert [finding.agrees for finding in findings if finding.agrees is not None] == [True, True]


def test_in_bfloat16_its_error_is_held_against_transformers_own(tmp_path: Path) -> None:
    artifact = built_for_cuda(tmp_path, "quantization.weights=bf16")
    manifest = Artifact.read(artifact).manifest
    assert (manifest.kv.dtype, manifest.programs[0].outputs[0].dtype) == ("bfloat16", "bfloat16")
    assert manifest.certificate.reference.endswith("float32, beside its own bfloat16")
    assert 1e-4 < manifest.certificate.max_logit_error <= manifest.certificate.bound


def test_a_replay_draws_what_the_eager_program_draws(artifact: Path) -> None:
    with gpu_machine([]), closing(EngineCore.open(artifact)) as core:
        replays_equal_eager_runs(core)

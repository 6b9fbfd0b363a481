"""Checkpoints that are quantised already, from recipe to tokens: nightly, for each is a build of its own."""

from pathlib import Path

import pytest

from pllm.build.pipeline import build_artifact
from pllm.build.progress import Progress
from pllm.build.recipe import Recipe
from pllm.runtime.engine_core import EngineCore
from pllm.runtime.safetensors_file import read_header
from tests.build.test_quantized_checkpoint import FIXTURES, opened

from .artifacts import LIMITS, answers
from .test_families import SCORED

BUILDS = [
    ("gptq-g32", "int4", {"U8", "BF16", "F32"}),
    ("awq-g32", "int4", {"U8", "BF16", "F32"}),
    ("w8a8", "int8", {"U8", "F32"}),
    ("fp8-channel", "bf16", {"BF16", "F32"}),
]
BOUND = 0.5
"""Of a log probability: activations in int8 under random weights."""


@pytest.mark.nightly
@pytest.mark.parametrize(("name", "weights", "dtypes"), BUILDS)
def test_an_artifact_of_it_is_certified_and_serves(name: str, weights: str, dtypes: set[str], tmp_path: Path) -> None:
    recipe = tmp_path / "model.toml"
    recipe.write_text(f'[model]\nsource = "{FIXTURES / name}"\n', encoding="utf-8")
    limits = [each for each in LIMITS if "max_logit_error" not in each]
    built = build_artifact(Recipe.load(recipe, limits), tmp_path / "artifact", Progress())
    lock = (tmp_path / "artifact" / "recipe.lock.toml").read_text(encoding="utf-8")
    assert f'weights = "{weights}"' in lock
    assert built.certificate.max_logit_error <= built.certificate.bound
    found = [read_header(tmp_path / "artifact" / file)[0].values() for file in built.weights.files]
    assert {entry.dtype for entries in found for entry in entries} <= dtypes | {"I64"}
    _, tokens, expected = opened(name)
    core = EngineCore.open(tmp_path / "artifact")
    try:
        (scored,) = answers(core.engine, [tokens.tolist()], SCORED)
    finally:
        core.close()
    reference = expected.log_softmax(-1)
    for i, said in enumerate(scored.prompt_logprobs):
        for token_id, logprob, _ in said.top:
            assert abs(logprob - float(reference[i, token_id])) <= BOUND

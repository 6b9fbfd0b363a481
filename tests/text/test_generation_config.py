"""The model author's recommendations."""

import json
from pathlib import Path

import pytest

from pllm.runtime.errors import ArtifactError, RequestError
from pllm.runtime.generation_config import GenerationConfig
from pllm.runtime.sampling_params import SamplingParams


def test_read_from_the_file(tmp_path: Path) -> None:
    path = tmp_path / "generation.json"
    written = {
        "temperature": 0.6,
        "top_k": 20,
        "top_p": None,
        "max_new_tokens": 64,
        "do_sample": True,
        "eos_token_id": [7, 9],
        "bos_token_id": 1,
    }
    path.write_text(json.dumps(written))
    config = GenerationConfig.open(path)
    assert config.eos_token_ids == (7, 9)
    assert config.sampling_params() == SamplingParams(temperature=0.6, top_k=20, max_tokens=64)
    assert GenerationConfig.open(tmp_path / "absent.json") == GenerationConfig()


@pytest.mark.parametrize("eos, ids", [(None, ()), (0, (0,)), ([1], (1,)), ([], ())])
def test_end_tokens(eos: object, ids: tuple[int, ...]) -> None:
    assert GenerationConfig.from_dict({"eos_token_id": eos}).eos_token_ids == ids


def test_precedence() -> None:
    config = GenerationConfig.from_dict({"temperature": 0.6, "top_p": 0.9})
    params = config.sampling_params(temperature=0.0, top_p=None, min_p=0.1)
    assert (params.temperature, params.top_p, params.min_p, params.top_k) == (0.0, 0.9, 0.1, 0)
    assert config.sampling_params().max_tokens == 16
    assert config.sampling_params(fill_context=True).max_tokens is None
    assert config.sampling_params(fill_context=True, max_tokens=3).max_tokens == 3
    limited = GenerationConfig.from_dict({"max_new_tokens": 5})
    assert limited.sampling_params(fill_context=True).max_tokens == limited.sampling_params().max_tokens == 5


def test_mistakes_are_of_those_who_make_them() -> None:
    with pytest.raises(RequestError) as caught:
        GenerationConfig().sampling_params(temperature=-1)
    assert caught.value.param == "temperature"
    with pytest.raises(TypeError, match="temperature"):
        GenerationConfig().sampling_params(temperatur=1)
    for wrong in ({"temperature": -1}, {"top_k": "many"}, {"eos_token_id": "x"}, {"eos_token_id": [-1]}):
        with pytest.raises(ArtifactError, match=r"^generation_config"):
            GenerationConfig.from_dict(wrong)

"""Names, defaults, ranges: what vLLM's users expect, and errors that name the field."""

from typing import Any

import msgspec
import numpy as np
import pytest

from pllm.runtime.errors import RequestError
from pllm.runtime.sampling_params import SamplingParams
from pllm.runtime.sequence import Request

DEFAULTS = {
    "n": 1,
    "temperature": 1,
    "top_p": 1,
    "top_k": 0,
    "min_p": 0,
    "presence_penalty": 0,
    "frequency_penalty": 0,
    "repetition_penalty": 1,
    "seed": None,
    "max_tokens": 16,
    "min_tokens": 0,
    "ignore_eos": False,
    "stop": (),
    "stop_token_ids": (),
    "bad_words": (),
    "allowed_token_ids": None,
    "logit_bias": None,
    "logprobs": None,
    "prompt_logprobs": None,
    "detokenize": True,
    "skip_special_tokens": True,
    "spaces_between_special_tokens": True,
    "include_stop_str_in_output": False,
    "structured_outputs": None,
}


def test_names_and_defaults() -> None:
    assert msgspec.structs.asdict(SamplingParams()) == DEFAULTS


@pytest.mark.parametrize(
    ("field", "values"),
    [
        ("n", [1, 128]),
        ("temperature", [0, 2, 1e-9, np.float32(0.5)]),
        ("top_p", [1e-9, 1]),
        ("top_k", [-1, 0, 1, 10**6, np.int64(4)]),
        ("min_p", [0, 1]),
        ("presence_penalty", [-2, 2]),
        ("frequency_penalty", [-2, 2]),
        ("repetition_penalty", [0.01, 5]),
        ("seed", [None, -1, 0, -(2**63), 2**63 - 1]),
        ("max_tokens", [None, 1, 10**6]),
        ("min_tokens", [0, 16]),
        ("stop", [None, "a", [], ["a", "bc"], ("a",)]),
        ("stop_token_ids", [None, [], [1, 2], range(3), np.arange(3)]),
        ("bad_words", [None, "a", ["a b"]]),
        ("allowed_token_ids", [None, [0]]),
        ("logit_bias", [None, {}, {1: 5}, {"17": -5.5}]),
        ("logprobs", [None, 0, 20]),
        ("prompt_logprobs", [None, 0, 20]),
    ],
)
def test_what_is_taken(field: str, values: list[Any]) -> None:
    for value in values:
        params = SamplingParams(**{field: value})
        hash((params.stop, params.stop_token_ids, params.allowed_token_ids, params.bad_words))
        assert msgspec.msgpack.decode(msgspec.msgpack.encode(params), type=SamplingParams) == params


@pytest.mark.parametrize(
    ("field", "values"),
    [
        ("n", [0, -1, 129, 10**30, 1.5, "1", None, True]),
        ("temperature", [-0.01, 2.01, float("nan"), float("inf"), "hot", None, [1], 10**400, True]),
        ("top_p", [0, -1, 1.01, float("nan"), None]),
        ("top_k", [-2, 1.0, None, 2**31]),
        ("min_p", [-0.1, 1.1, None]),
        ("presence_penalty", [-2.1, 2.1, None]),
        ("frequency_penalty", [-2.1, 2.1, "x"]),
        ("repetition_penalty", [0, -1, float("inf"), None]),
        ("seed", [2**63, -(2**63) - 1, 1.0, "s"]),
        ("max_tokens", [0, -1, 1.5, 2**40]),
        ("min_tokens", [-1, 17, None]),
        ("stop", [[""], "", [1], 5, {"a": 1}, b"a", ["x"] * 65, ["x" * 1001]]),
        ("stop_token_ids", [["1"], "12", [-1], [2**31], 5, [1.0]]),
        ("bad_words", [[""], [3], ["x"] * 1001]),
        ("allowed_token_ids", [[], "1", [-1], range(10**9)]),
        (
            "logit_bias",
            [{"a": 1}, {-1: 1}, {1: "x"}, {1: float("nan")}, [1], dict.fromkeys(range(10_001), 1.0), {"9" * 99: 1}],
        ),
        ("logprobs", [-1, 21, True, "5"]),
        ("prompt_logprobs", [-1, 21, 1.0]),
        ("ignore_eos", [1, "true", None]),
        ("detokenize", [0]),
        ("skip_special_tokens", [None]),
        ("spaces_between_special_tokens", ["no"]),
        ("include_stop_str_in_output", [2]),
    ],
)
def test_what_is_refused_names_its_field(field: str, values: list[Any]) -> None:
    for value in values:
        with pytest.raises(RequestError) as refusal:
            SamplingParams(**{field: value})
        assert refusal.value.param == field
        assert field in refusal.value.message
        assert len(refusal.value.message) < 250


def test_normal_forms() -> None:
    params = SamplingParams(stop="a", stop_token_ids=[1], top_k=-1, seed=-1, logit_bias={"3": 200})  # type: ignore[dict-item]
    assert (params.stop, params.stop_token_ids, params.top_k, params.seed) == (("a",), (1,), 0, None)
    assert params.logit_bias == {3: 100.0}
    assert SamplingParams(temperature=9e-6).greedy
    assert not SamplingParams(temperature=1e-5).greedy


def test_stop_strings_need_text() -> None:
    with pytest.raises(RequestError, match="detokenize"):
        SamplingParams(stop="a", detokenize=False)


def test_an_unknown_keyword_names_the_nearest() -> None:
    with pytest.raises(TypeError, match=r"'temprature'. Did you mean 'temperature'"):
        SamplingParams(temprature=1)  # type: ignore[call-arg]
    with pytest.raises(TypeError, match=r"'max_new_tokens'. Did you mean 'max_tokens'"):
        SamplingParams(max_new_tokens=1)  # type: ignore[call-arg]


def test_it_is_frozen_and_closed() -> None:
    with pytest.raises(AttributeError):
        SamplingParams().n = 2  # type: ignore[misc]
    with pytest.raises(msgspec.ValidationError):
        msgspec.msgpack.decode(msgspec.msgpack.encode({"tmp": 1}), type=SamplingParams)


def test_a_request_crosses_processes() -> None:
    request = Request(
        "id", (1, 2), SamplingParams(stop=["x"], logit_bias={1: 2.0}), (3,), 0.5, "salt", -1, ((4, 5), (6,))
    )
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(request), type=Request) == request

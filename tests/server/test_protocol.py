"""Requests as bytes to requests as types: every field, every wrong type, every range."""

import json
from typing import Any

import pytest

from pllm.runtime.errors import RequestError
from pllm.runtime.generation_config import GenerationConfig
from pllm.runtime.server.protocol.conversation import conversation_of
from pllm.runtime.server.protocol.params import chat_params, completion_params
from pllm.runtime.server.protocol.parse import parse
from pllm.runtime.server.protocol.prompts import prompts_of
from pllm.runtime.server.protocol.requests import ChatCompletionRequest, CompletionRequest, TokenizeRequest

MESSAGES = [{"role": "user", "content": "hello"}]
CHAT = {"messages": MESSAGES}
PLAIN = {"prompt": "hello"}
NEUTRAL = GenerationConfig.from_dict({})

# What each field refuses. Of every field but those in NULLABLE_NOT, null is "not given".
WRONG: dict[str, list[Any]] = {
    "model": [1, [], {}, "m" * 2000],
    "n": [0, -1, 129, 1.5, "1", True, 2**70, []],
    "stream": ["yes", 1, []],
    "stream_options": [True, "x", [], {"include_usage": 1}],
    "user": [1, {}],
    "temperature": [-0.1, 2.1, "hot", True, [], 1e400],
    "top_p": [0, -0.5, 1.01, "x"],
    "top_k": [-2, 1.5, "x", 2**40],
    "min_p": [-0.1, 1.1, "x"],
    "presence_penalty": [-2.1, 2.1, "x"],
    "frequency_penalty": [-2.1, 2.1, "x"],
    "repetition_penalty": [0, -1, "x", 1e9],
    "seed": [1.5, "x", 2**63, -(2**63) - 1, True],
    "logit_bias": [[], "x", {"1": "x"}, {"1": 101}, {"1": -101}, {str(i): 0 for i in range(1025)}],
    "allowed_token_ids": [[], [-1], ["x"], "x", [2**31]],
    "bad_words": ["x", [""], [1], ["w"] * 1001],
    "stop": [1, [1], [""], {}, ["s"] * 65, "s" * 1001],
    "stop_token_ids": ["x", [-1], ["x"], [0] * 4097],
    "include_stop_str_in_output": ["x", 1],
    "ignore_eos": ["x", 1],
    "min_tokens": [-1, "x", 1.5],
    "response_format": ["json_object", {}, {"type": "xml"}, {"type": "json_schema", "json_schema": {"schema": []}}],
    "structured_outputs": ["x", {"json": 1}, {"choice": "x"}, {"regex": 1}, {"choice": ["a"] * 4097}],
    "guided_json": [1, []],
    "guided_regex": [1, {}],
    "guided_choice": ["x", [1]],
    "guided_grammar": [1, ["x"]],
    "prompt_logprobs": [-1, 21, True, "x"],
    "skip_special_tokens": ["x", 0],
    "spaces_between_special_tokens": ["x", 0],
    "priority": ["x", 1.5, 2**40],
    "cache_salt": ["", 1, "s" * 1025],
}
WRONG_CHAT: dict[str, list[Any]] = {
    "messages": [
        [],
        {},
        "x",
        [1],
        [{}],
        [{"role": "nobody", "content": "x"}],
        [{"role": "user", "content": 1}],
        [{"role": "user", "content": [{"text": "x"}]}],
    ],
    "max_tokens": [0, -1, "x", 1.5, True, 2**40],
    "max_completion_tokens": [0, -1, "x", 1.5],
    "logprobs": [1, "x"],
    "top_logprobs": [-1, 21, "x", True],
    "tools": [
        "x",
        [1],
        [{"type": "function"}],
        [{"type": "web", "function": {"name": "f"}}],
        [{"type": "function", "function": {}}],
    ],
    "tool_choice": ["maybe", 1, {"type": "function"}],
    "parallel_tool_calls": ["x", 1],
    "add_generation_prompt": ["x", 1],
    "chat_template_kwargs": ["x", [], 1],
}
WRONG_PLAIN: dict[str, list[Any]] = {
    "prompt": [1, True, {}, [], [1.5], [True], [[1], ["x"]], [-1], [None]],
    "max_tokens": [-1, "x", 1.5, True, 2**40],
    "logprobs": [-1, 21, True, "x"],
    "echo": ["x", 1],
    "add_special_tokens": ["x", 1],
}


def cases(kind: type, base: dict[str, Any], wrong: dict[str, list[Any]]) -> list[Any]:
    return [
        pytest.param(kind, {**base, field: value}, field, id=f"{kind.__name__}-{field}-{str(value)[:24]}")
        for field, values in wrong.items()
        for value in values
    ]


@pytest.mark.parametrize(
    ("kind", "body", "field"),
    cases(ChatCompletionRequest, CHAT, WRONG | WRONG_CHAT) + cases(CompletionRequest, PLAIN, WRONG | WRONG_PLAIN),
)
def test_every_wrong_value_names_its_field(kind: type, body: dict[str, Any], field: str) -> None:
    text = json.dumps(body).replace("Infinity", "1e400")
    with pytest.raises(RequestError) as caught:
        parse(text.encode(), kind)
    assert caught.value.http_status == 400
    assert (caught.value.param or "").partition("[")[0].partition(".")[0] == field
    assert field in caught.value.message


@pytest.mark.parametrize("kind", [ChatCompletionRequest, CompletionRequest])
def test_null_is_not_given(kind: type) -> None:
    fields = dict.fromkeys((WRONG | (WRONG_CHAT if kind is ChatCompletionRequest else WRONG_PLAIN)).keys())
    request = parse(json.dumps({**fields, **CHAT, **PLAIN}).encode(), kind).request
    assert request.temperature is None


def test_the_matrix_covers_every_field() -> None:
    assert set(WRONG | WRONG_CHAT) == set(ChatCompletionRequest.__struct_fields__)
    assert set(WRONG | WRONG_PLAIN) == set(CompletionRequest.__struct_fields__)


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (b"", "not valid JSON"),
        (b"{", "not valid JSON"),
        (b"[]", "must be a JSON object"),
        (b"3", "must be a JSON object"),
        (b'{"prompt": NaN}', "not valid JSON"),
        (b'{"prompt": "x"} trailing', "not valid JSON"),
        (b'{"prompt": "\xff"}', "not UTF-8"),
        (b'{"prompt": "\\ud800"}', "not valid JSON"),
        (b'{"prompt": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", "nested too deeply"),
        (b'{"whatever": ' + b'{"a":' * 100_000 + b"1" + b"}" * 100_000 + b"}", "nested too deeply"),
        (b"{}", "Missing required field: 'prompt'"),
        # what would hold the process for seconds, and take gigabytes, is not even decoded
        (b'{"prompt": [' + b"[]," * 4_000_000 + b"[]]}", "more than 250000 arrays and objects"),
        (b'{"prompt": [' + b"1," * 4_000_000 + b"1]}", "more than 2500000 values"),
        (b'{"a":1' + b',"a":1' * 1_000_000 + b"}", "more than 250000 keys"),
        (b"{" + b",".join(b'"%d": 1' % i for i in range(1000)) + b"}", "has 1000 fields"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_is_no_request(body: bytes, said: str) -> None:
    with pytest.raises(RequestError, match=said):
        parse(body, CompletionRequest)


@pytest.mark.parametrize(
    ("field", "value", "neutral"),
    [
        ("structural_tag", {"triggers": []}, None),
        ("audio", {"voice": "x"}, None),
        ("modalities", ["text", "audio"], ["text"]),
        ("functions", [{"name": "f"}], []),
        ("function_call", "auto", None),
        ("chat_template", "{{ 1 }}", None),
        ("best_of", 4, 1),
        ("use_beam_search", True, False),
        ("suffix", "x", ""),
        ("documents", [{"text": "x"}], []),
        ("logits_processors", ["x"], None),
    ],
)
def test_what_would_change_the_answer_is_refused_by_name(field: str, value: Any, neutral: Any) -> None:
    with pytest.raises(RequestError) as caught:
        parse(json.dumps({**CHAT, field: value}).encode(), ChatCompletionRequest)
    assert (caught.value.param, caught.value.code) == (field, "unsupported_parameter")
    assert field in caught.value.message
    assert parse(json.dumps({**CHAT, field: neutral}).encode(), ChatCompletionRequest).unknown == ()


@pytest.mark.parametrize(
    "field", ["store", "metadata", "service_tier", "prompt_cache_key", "reasoning_effort", "verbosity"]
)
def test_what_cannot_change_the_answer_is_taken(field: str) -> None:
    assert parse(json.dumps({**CHAT, field: "x"}).encode(), ChatCompletionRequest).unknown == ()


def test_what_nobody_knows_is_reported_or_refused() -> None:
    body = json.dumps({**CHAT, "temprature": 1, "zzz": {}}).encode()
    assert parse(body, ChatCompletionRequest).unknown == ("temprature", "zzz")
    with pytest.raises(RequestError, match="Did you mean 'temperature'") as caught:
        parse(json.dumps({**CHAT, "temprature": 1}).encode(), ChatCompletionRequest, refuse_unknown=True)
    assert caught.value.param == "temprature"


def chat(**fields: Any) -> Any:
    return parse(json.dumps({**CHAT, **fields}).encode(), ChatCompletionRequest).request


def plain(**fields: Any) -> Any:
    return parse(json.dumps({**PLAIN, **fields}).encode(), CompletionRequest).request


def test_request_over_generation_config_over_defaults() -> None:
    recommended = GenerationConfig.from_dict({"temperature": 0.6, "top_k": 20})
    params = chat_params(chat(temperature=0.1), recommended, 100)
    assert (params.temperature, params.top_k, params.top_p) == (0.1, 20, 1.0)


def test_how_many_tokens() -> None:
    assert completion_params(plain(), NEUTRAL, 100).max_tokens == 16
    assert chat_params(chat(), NEUTRAL, 100).max_tokens == 100  # cut to what the prompt leaves when that is known
    assert chat_params(chat(max_tokens=5, max_completion_tokens=7), NEUTRAL, 100).max_tokens == 7
    recommended = GenerationConfig.from_dict({"max_new_tokens": 40})
    assert completion_params(plain(), recommended, 100).max_tokens == 40
    assert chat_params(chat(), recommended, 100).max_tokens == 40
    for name in ("max_tokens", "max_completion_tokens"):
        with pytest.raises(RequestError, match="maximum context length is 100") as caught:
            chat_params(chat(**{name: 101}), NEUTRAL, 100)
        assert caught.value.param == name


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"stream_options": {"include_usage": True}}, "stream_options"),
        ({"top_logprobs": 2}, "top_logprobs"),
        ({"stream": True, "prompt_logprobs": 1}, "prompt_logprobs"),
        ({"min_tokens": 5, "max_tokens": 4}, "min_tokens"),
        ({"logit_bias": {"x": 1}}, "logit_bias"),
        ({"logit_bias": {"-1": 1}}, "logit_bias"),
        ({"logit_bias": {"9" * 30: 1}}, "logit_bias"),
    ],
)
def test_what_does_not_go_together(fields: dict[str, Any], param: str) -> None:
    with pytest.raises(RequestError) as caught:
        chat_params(chat(**fields), NEUTRAL, 100)
    assert caught.value.param == param


def test_stop_and_bias_reach_the_parameters() -> None:
    params = completion_params(plain(stop="ab", logit_bias={"7": -100}, logprobs=3, seed=5, n=2), NEUTRAL, 100)
    assert (params.stop, params.logit_bias, params.logprobs, params.seed, params.n) == (("ab",), {7: -100.0}, 3, 5, 2)
    assert completion_params(plain(stop=[]), NEUTRAL, 100).stop == ()


@pytest.mark.parametrize(
    ("prompt", "prompts"),
    [
        ("a", ["a"]),
        ([1, 2], [[1, 2]]),
        (["a", "b"], ["a", "b"]),
        ([[1], [2, 3]], [[1], [2, 3]]),
        (["a", [1]], ["a", [1]]),
    ],
)
def test_forms_of_a_prompt(prompt: Any, prompts: Any) -> None:
    assert prompts_of(plain(prompt=prompt)) == prompts


def test_a_mixture_of_token_ids_and_texts_is_refused() -> None:
    with pytest.raises(RequestError, match="token ids"):
        prompts_of(plain(prompt=[1, "a"]))


def test_conversations_reach_the_template_as_they_were_written() -> None:
    tools = [{"type": "function", "function": {"name": "f", "x-extra": 1}}]
    body = {**CHAT, "tools": tools, "chat_template_kwargs": {"enable_thinking": False}}
    given = conversation_of(parse(json.dumps(body).encode(), ChatCompletionRequest))
    assert given == {"messages": MESSAGES, "tools": tools, "enable_thinking": False, "add_generation_prompt": True}
    given = conversation_of(parse(json.dumps({**body, "tool_choice": "none"}).encode(), ChatCompletionRequest))
    assert given["tools"] is None
    parsed = parse(json.dumps({"messages": MESSAGES, "add_generation_prompt": False}).encode(), TokenizeRequest)
    assert conversation_of(parsed)["add_generation_prompt"] is False


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"chat_template_kwargs": {"messages": []}}, "chat_template_kwargs.messages"),
        ({"messages": [{"role": "user"}]}, "messages[0].content"),
        ({"messages": [*MESSAGES, {"role": "user", "content": [{"type": "image_url"}]}]}, "messages[1].content[0]"),
    ],
)
def test_conversations_that_are_refused(fields: dict[str, Any], param: str) -> None:
    with pytest.raises(RequestError) as caught:
        conversation_of(parse(json.dumps({**CHAT, **fields}).encode(), ChatCompletionRequest))
    assert caught.value.param == param

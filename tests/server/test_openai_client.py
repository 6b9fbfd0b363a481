"""OpenAI's own client, as users have it."""

import asyncio
from collections.abc import Iterator

import openai
import pytest

from .servers import Server

MESSAGES = [{"role": "user", "content": "hello there"}]


@pytest.fixture
def api(server: Server) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="any", max_retries=0) as api:
        yield api


def test_models(api: openai.OpenAI) -> None:
    assert [model.id for model in api.models.list()] == ["parrot", "tests/parrot"]
    assert api.models.retrieve("tests/parrot").owned_by == "pllm"


def test_chat(api: openai.OpenAI) -> None:
    answer = api.chat.completions.create(
        model="parrot", messages=MESSAGES, n=2, logprobs=True, top_logprobs=2, seed=1, extra_body={"top_k": 5}
    )
    assert [choice.message.content for choice in answer.choices] == ["hello there"] * 2
    assert answer.choices[0].logprobs.content[0].top_logprobs[0].token == "x"
    assert (
        answer.usage.prompt_tokens_details.cached_tokens == 0 or answer.usage.prompt_tokens_details.cached_tokens >= 16
    )
    assert answer._request_id.startswith("req-")


def test_chat_streamed(api: openai.OpenAI) -> None:
    stream = api.chat.completions.create(
        model="parrot", messages=MESSAGES, stream=True, stream_options={"include_usage": True}
    )
    chunks = list(stream)
    assert chunks[0].choices[0].delta.role == "assistant"
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices) == "hello there"
    assert chunks[-2].choices[0].finish_reason == "stop"
    assert chunks[-1].usage.completion_tokens == 12


def test_the_stream_helper(api: openai.OpenAI) -> None:
    with api.chat.completions.stream(model="parrot", messages=MESSAGES) as stream:
        for _ in stream:
            pass
        assert stream.get_final_completion().choices[0].message.content == "hello there"


def test_completions(api: openai.OpenAI) -> None:
    answer = api.completions.create(model="parrot", prompt=["ab", "cd"], max_tokens=4, logprobs=1, echo=True)
    assert [choice.text for choice in answer.choices] == ["abab", "cdcd"]
    assert answer.choices[0].logprobs.text_offset == [0, 1, 2, 3, 4]
    parts = list(api.completions.create(model="parrot", prompt="abc", stream=True))
    assert "".join(part.choices[0].text for part in parts) == "abc"


def test_errors_have_their_types(api: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError) as missing:
        api.chat.completions.create(model="gpt-4o", messages=MESSAGES)
    assert (missing.value.code, missing.value.param) == ("model_not_found", "model")
    with pytest.raises(openai.BadRequestError) as wrong:
        api.chat.completions.create(model="parrot", messages=MESSAGES, temperature=9)
    assert wrong.value.param == "temperature"
    with pytest.raises(openai.InternalServerError):
        api.completions.create(model="parrot", prompt="hello", seed=9003)
    with pytest.raises(openai.APIError, match="not numbers"):
        list(api.completions.create(model="parrot", prompt="hello", seed=9003, stream=True))


def test_many_at_once(server: Server) -> None:
    async def main() -> list[str]:
        async with openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key="any") as api:

            async def one(number: int) -> str:
                messages = [{"role": "user", "content": f"number {number} ä😀"}]
                if number % 2:
                    answer = await api.chat.completions.create(model="parrot", messages=messages)
                    return answer.choices[0].message.content
                stream = await api.chat.completions.create(model="parrot", messages=messages, stream=True)
                return "".join([chunk.choices[0].delta.content or "" async for chunk in stream])

            return await asyncio.gather(*(one(number) for number in range(40)))

    assert asyncio.run(main()) == [f"number {number} ä😀" for number in range(40)]


def test_what_users_of_vllm_add(api: openai.OpenAI) -> None:
    more = {
        "top_k": 5, "min_p": 0.1, "repetition_penalty": 1.1, "stop_token_ids": [], "ignore_eos": False, "min_tokens": 1,
        "include_stop_str_in_output": False, "skip_special_tokens": True, "spaces_between_special_tokens": True,
        "priority": 0, "cache_salt": "mine", "best_of": 1, "use_beam_search": False, "length_penalty": 1.0,
        "add_generation_prompt": True, "chat_template_kwargs": {"enable_thinking": False}, "prompt_logprobs": None,
        "guided_decoding_backend": "xgrammar", "documents": None, "echo": False, "add_special_tokens": False,
        "guided_choice": ["hello", "there"],
    }  # fmt: skip
    answer = api.chat.completions.with_raw_response.create(model="parrot", messages=MESSAGES, extra_body=more)
    assert answer.parse().choices[0].message.content == "hello"
    assert answer.headers["x-pllm-ignored-fields"] == "guided_decoding_backend"


def test_what_agents_send(api: openai.OpenAI) -> None:
    """As LangChain and its like write it: parts of text, empty fields, an answered call, a schema and tools at once."""
    schema = {"type": "object", "properties": {"x": {"type": "integer"}}, "required": ["x"]}
    tool = {"type": "function", "function": {"name": "f", "description": "", "parameters": schema, "strict": True}}
    call = {"id": "call_1", "type": "function", "function": {"name": "f", "arguments": '{"x": 1}'}}
    stream = api.chat.completions.create(
        model="parrot",
        messages=[
            {"role": "system", "content": ""},
            {"role": "user", "content": [{"type": "text", "text": "do"}], "name": "ann"},
            {"role": "assistant", "content": None, "tool_calls": [call], "refusal": None},
            {"role": "tool", "content": [{"type": "text", "text": '{"x": 2}'}], "tool_call_id": "call_1"},
        ],
        tools=[tool],
        tool_choice="auto",
        parallel_tool_calls=True,
        response_format={"type": "json_schema", "json_schema": {"name": "x", "strict": True, "schema": schema}},
        stream=True,
        stream_options={"include_usage": True},
        temperature=0.7,
        top_p=1,
        n=1,
        max_tokens=60,
        user="ann",
        metadata={"run": "1"},
        store=False,
        seed=7,
        logit_bias={},
        stop=[],
    )
    chunks = list(stream)
    assert chunks[-1].usage.total_tokens > 0
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices).startswith('{"x":')

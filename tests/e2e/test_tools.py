"""The quickstart model calls a tool, and answers in a form: everything real, through the `openai` client."""

import json
from collections.abc import Iterator

import openai
import pytest

from pllm import LLM, SamplingParams, StructuredOutputsParams

WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "Get the weather in a city.",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}
MESSAGES = [{"role": "user", "content": "What is the weather in Paris?"}]
PERSON = {
    "type": "object",
    "properties": {"name": {"type": "string"}, "age": {"type": "integer"}},
    "required": ["name", "age"],
    "additionalProperties": False,
}
ANN = [{"role": "user", "content": "Ann is 31 years old. Give name and age as JSON."}]


@pytest.fixture
def api(server) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="any", max_retries=0) as api:
        yield api


def test_a_tool_is_called_and_its_result_is_worded(api: openai.OpenAI) -> None:
    asked = {"model": "quickstart", "temperature": 0, "tools": [WEATHER]}
    choice = api.chat.completions.create(messages=MESSAGES, **asked).choices[0]
    assert choice.finish_reason == "tool_calls"
    assert choice.message.content is None
    (call,) = choice.message.tool_calls
    assert call.function.name == "get_weather"
    assert json.loads(call.function.arguments) == {"city": "Paris"}
    result = {"role": "tool", "tool_call_id": call.id, "content": '{"temperature": 21, "condition": "sunny"}'}
    answer = api.chat.completions.create(messages=[*MESSAGES, choice.message, result], **asked).choices[0]
    assert answer.message.content == "It is sunny and 21 degrees in Paris."


def test_a_streamed_call(api: openai.OpenAI) -> None:
    stream = api.chat.completions.create(
        model="quickstart", temperature=0, messages=MESSAGES, tools=[WEATHER], stream=True
    )
    name, arguments = "", ""
    for chunk in stream:
        for call in chunk.choices[0].delta.tool_calls or ():
            name += call.function.name or ""
            arguments += call.function.arguments or ""
    assert (name, json.loads(arguments)) == ("get_weather", {"city": "Paris"})


@pytest.mark.parametrize("choice", ["required", {"type": "function", "function": {"name": "get_weather"}}])
def test_a_call_that_the_model_would_not_make(api: openai.OpenAI, choice) -> None:
    answer = api.chat.completions.create(
        model="quickstart",
        temperature=0,
        messages=[{"role": "user", "content": "Hello!"}],
        tools=[WEATHER],
        tool_choice=choice,
        parallel_tool_calls=False,
    )
    (call,) = answer.choices[0].message.tool_calls
    assert call.function.name == "get_weather"
    assert json.loads(call.function.arguments).keys() == {"city"}


def test_a_strict_tool_keeps_to_its_schema_where_the_model_would_not(api: openai.OpenAI) -> None:
    cities = {"type": "object", "properties": {"city": {"enum": ["Rome", "Oslo"]}}, "required": ["city"]}
    function = {**WEATHER["function"], "parameters": {**cities, "additionalProperties": False}, "strict": True}
    asked = {"model": "quickstart", "temperature": 0, "tools": [{"type": "function", "function": function}]}
    choice = api.chat.completions.create(messages=MESSAGES, **asked).choices[0]
    assert choice.finish_reason == "tool_calls"
    assert json.loads(choice.message.tool_calls[0].function.arguments)["city"] in ("Rome", "Oslo")
    # and where it does not call, it says what it would have said
    said = [{"role": "user", "content": "Hello!"}]
    plain = api.chat.completions.create(messages=said, model="quickstart", temperature=0, tools=[WEATHER])
    strict = api.chat.completions.create(messages=said, **asked)
    assert strict.choices[0].message.content == plain.choices[0].message.content


def test_an_answer_of_a_schema(api: openai.OpenAI, llm: LLM) -> None:
    form = {"type": "json_schema", "json_schema": {"name": "person", "strict": True, "schema": PERSON}}
    answer = api.chat.completions.create(model="quickstart", temperature=0, messages=ANN, response_format=form)
    assert answer.choices[0].message.content == '{"name": "Ann", "age": 31}'
    shipped = {"type": "json_schema", "json_schema": {"name": "person"}}  # as recipes/quickstart.toml names it
    answer = api.chat.completions.create(model="quickstart", temperature=0, messages=ANN, response_format=shipped)
    assert answer.choices[0].message.content == '{"name": "Ann", "age": 31}'
    params = SamplingParams(temperature=0, max_tokens=64, structured_outputs=StructuredOutputsParams(json=PERSON))
    (output,) = llm.chat(ANN, params, use_tqdm=False)
    assert output.outputs[0].text == '{"name": "Ann", "age": 31}'


def test_a_schema_holds_where_the_model_has_no_idea(llm: LLM) -> None:
    params = SamplingParams(
        temperature=1,
        seed=1,
        n=4,
        max_tokens=200,
        structured_outputs=StructuredOutputsParams(regex=r"\{\"id\": [0-9]{4}, \"kind\": \"(cat|dog)\"\}"),
    )
    (output,) = llm.chat([{"role": "user", "content": "Hello!"}], params, use_tqdm=False)
    for answer in output.outputs:
        assert json.loads(answer.text)["kind"] in ("cat", "dog")
        assert answer.finish_reason == "stop"

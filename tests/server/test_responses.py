"""``/v1/responses`` as HTTP clients and as OpenAI's own client see it."""

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from pllm.runtime.errors import RequestError
from pllm.runtime.server.protocol.parse import parse
from pllm.runtime.server.protocol.response_request import ResponsesRequest, translated

from .servers import Server, running_server


@pytest.fixture
def api(server: Server) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="any", max_retries=0) as api:
        yield api


def respond(client: httpx.Client, **fields: Any) -> httpx.Response:
    return client.post("/v1/responses", json={"input": "hello"} | fields)


def events(text: str) -> list[dict[str, Any]]:
    """The typed events: each with its name before its data."""
    parts = []
    for block in text.strip().split("\n\n"):
        name, data = block.split("\n")
        event = json.loads(data.removeprefix("data: "))
        assert name == f"event: {event['type']}"
        parts.append(event)
    assert [event["sequence_number"] for event in parts] == list(range(len(parts)))
    return parts


def messages_of(**fields: Any) -> list[dict[str, Any]]:
    parsed = parse(json.dumps(fields).encode(), ResponsesRequest)
    return list(translated(parsed).request.chat.plain("messages"))


def test_whole(client: httpx.Client) -> None:
    answer = respond(client, metadata={"a": "b"}, temperature=0).json()
    assert (answer["object"], answer["status"], answer["model"]) == ("response", "completed", "parrot")
    assert answer["id"].startswith("resp-")
    (item,) = answer["output"]
    assert (item["type"], item["role"], item["status"]) == ("message", "assistant", "completed")
    assert item["content"] == [{"type": "output_text", "text": "hello", "annotations": [], "logprobs": []}]
    usage = answer["usage"]
    assert usage["output_tokens"] == 6
    assert usage["total_tokens"] == usage["input_tokens"] + 6
    assert usage["input_tokens_details"]["cached_tokens"] == 0
    assert (answer["metadata"], answer["temperature"], answer["store"]) == ({"a": "b"}, 0, False)


def test_what_is_cut_is_incomplete(client: httpx.Client) -> None:
    answer = respond(client, max_output_tokens=2).json()
    assert (answer["status"], answer["incomplete_details"]) == ("incomplete", {"reason": "max_output_tokens"})
    assert (answer["output"][0]["status"], answer["output"][0]["content"][0]["text"]) == ("incomplete", "he")
    assert events(respond(client, max_output_tokens=2, stream=True).text)[-1]["type"] == "response.incomplete"


def test_streamed_is_whole(client: httpx.Client) -> None:
    text = "naïve café, 你好 😀 and the end"
    whole = respond(client, input=text).json()
    parts = events(respond(client, input=text, stream=True).text)
    kinds = [event["type"] for event in parts]
    assert kinds[:4] == [
        "response.created",
        "response.in_progress",
        "response.output_item.added",
        "response.content_part.added",
    ]
    assert set(kinds[4:-4]) == {"response.output_text.delta"}
    assert kinds[-4:] == [
        "response.output_text.done",
        "response.content_part.done",
        "response.output_item.done",
        "response.completed",
    ]
    assert "".join(event.get("delta", "") for event in parts) == text == parts[-4]["text"]
    own = ("id", "created_at", "completed_at", "output")
    ended = parts[-1]["response"]
    assert {key: ended[key] for key in ended if key not in own} == {
        key: whole[key] for key in whole if key not in own
    } | {"usage": ended["usage"]}
    assert ended["usage"]["output_tokens"] == whole["usage"]["output_tokens"]
    assert ended["output"][0]["content"] == whole["output"][0]["content"]
    assert parts[0]["response"]["output"] == []


def test_an_answer_without_text_is_a_message_all_the_same(client: httpx.Client) -> None:
    answer = respond(client, input="x", stop="x").json()
    assert answer["output"][0]["content"][0]["text"] == ""
    parts = events(respond(client, input="x", stop="x", stream=True).text)
    assert parts[-1]["response"]["output"][0]["content"][0]["text"] == ""


def test_a_failure_in_a_stream_is_an_event(client: httpx.Client) -> None:
    parts = events(respond(client, seed=9003, stream=True).text)
    assert parts[-1]["type"] == "response.failed"
    assert parts[-1]["response"]["status"] == "failed"
    assert "not numbers" in parts[-1]["response"]["error"]["message"]
    assert respond(client, seed=9003).status_code == 500


def test_a_form_is_kept(client: httpx.Client) -> None:
    schema = {"type": "object", "properties": {"a": {"enum": [1]}}, "required": ["a"], "additionalProperties": False}
    form = {"type": "json_schema", "name": "one", "schema": schema, "strict": True}
    answer = respond(client, text={"format": form}, max_output_tokens=100).json()
    assert json.loads(answer["output"][0]["content"][0]["text"]) == {"a": 1}
    assert answer["text"]["format"]["name"] == "one"
    wrong = respond(client, text={"format": {**form, "schema": {"type": 1}}})
    assert (wrong.status_code, wrong.json()["error"]["param"][:11]) == (400, "text.format")


def test_logprobs(client: httpx.Client) -> None:
    answer = respond(client, top_logprobs=2, max_output_tokens=2).json()
    logprobs = answer["output"][0]["content"][0]["logprobs"]
    assert [entry["token"] for entry in logprobs] == ["h", "e"]
    assert [top["token"] for top in logprobs[0]["top_logprobs"]] == ["x", "h"]
    included = respond(client, include=["message.output_text.logprobs"], max_output_tokens=1).json()
    assert included["output"][0]["content"][0]["logprobs"][0]["token"] == "h"


class TestInput:
    def test_text_and_instructions(self, client: httpx.Client) -> None:
        assert messages_of(input="a", instructions="b") == [
            {"role": "system", "content": "b"},
            {"role": "user", "content": "a"},
        ]
        answer = respond(client, input="a", instructions="b").json()
        assert answer["output"][0]["content"][0]["text"] == "ba"
        assert answer["instructions"] == "b"

    def test_messages_with_and_without_type(self) -> None:
        parts = [{"type": "input_text", "text": "c"}, {"type": "input_text", "text": "d"}]
        given = [
            {"role": "developer", "content": "a"},
            {"type": "message", "role": "user", "content": parts},
        ]
        assert messages_of(input=given) == [
            {"role": "developer", "content": "a"},
            {"role": "user", "content": [{"type": "text", "text": "c"}, {"type": "text", "text": "d"}]},
        ]

    def test_an_answer_can_be_sent_back(self, client: httpx.Client) -> None:
        output = respond(client, input="one").json()["output"]
        conversation = [{"role": "user", "content": "one"}, *output, {"role": "user", "content": "two"}]
        answer = respond(client, input=conversation).json()
        assert answer["output"][0]["content"][0]["text"] == "oneonetwo"

    def test_calls_and_their_outputs(self) -> None:
        def call(number: int) -> dict[str, Any]:
            return {"type": "function_call", "call_id": f"c{number}", "name": "f", "arguments": "{}"}

        given = [
            {"role": "user", "content": "a"},
            {"type": "reasoning", "summary": [], "content": [{"type": "reasoning_text", "text": "hm"}]},
            call(1),
            call(2),
            {"type": "function_call_output", "call_id": "c1", "output": "x"},
            {"type": "function_call_output", "call_id": "c2", "output": [{"type": "input_text", "text": "y"}]},
            {"role": "assistant", "content": "b"},
            {"role": "assistant", "content": "c"},
        ]

        def chat_call(number: int) -> dict[str, Any]:
            return {"id": f"c{number}", "type": "function", "function": {"name": "f", "arguments": "{}"}}

        assert messages_of(input=given) == [
            {"role": "user", "content": "a"},
            {"role": "assistant", "reasoning_content": "hm", "tool_calls": [chat_call(1), chat_call(2)]},
            {"role": "tool", "tool_call_id": "c1", "content": "x"},
            {"role": "tool", "tool_call_id": "c2", "content": [{"type": "text", "text": "y"}]},
            {"role": "assistant", "content": "b"},
            {"role": "assistant", "content": "c"},
        ]

    def test_tools_stand_flat(self) -> None:
        tool = {"type": "function", "name": "f", "description": "d", "parameters": {"type": "object"}}
        parsed = parse(json.dumps({"input": "a", "tools": [tool], "tool_choice": "auto"}).encode(), ResponsesRequest)
        (chat_tool,) = translated(parsed).request.chat.plain("tools")
        assert chat_tool == {
            "type": "function",
            "function": {"name": "f", "description": "d", "parameters": {"type": "object"}},
        }


TOOL = {"type": "function", "name": "weather", "parameters": {"type": "object"}}
CALL = '<tool_call>\n{"name": "weather", "arguments": {"city": "Bern"}}\n</tool_call>'


@pytest.fixture(scope="module")
def hermes(artifact: Path) -> Iterator[Server]:
    """A server whose model, the parrot, thinks and calls tools if one tells it how."""
    with running_server(artifact, "--tool-call-parser", "hermes", "--reasoning-parser", "think") as server:
        yield server.wait_ready()


def test_calls_are_items(hermes: Server) -> None:
    # The template shows the tools first, and the parrot says all of it again.
    body = {"input": f"sure{CALL}{CALL}", "tools": [TOOL], "max_output_tokens": 400}
    with hermes.client() as client:
        whole = respond(client, **body).json()
        parts = events(respond(client, **body, stream=True).text)
    calls = [item for item in whole["output"] if item["type"] == "function_call"]
    assert [(call["name"], json.loads(call["arguments"])) for call in calls] == [("weather", {"city": "Bern"})] * 2
    assert len({call["call_id"] for call in calls}) == 2
    assert {item["status"] for item in whole["output"]} == {"completed"}
    own = ("id", "call_id")
    streamed = [{key: item[key] for key in item if key not in own} for item in parts[-1]["response"]["output"]]
    assert streamed == [{key: item[key] for key in item if key not in own} for item in whole["output"]]
    deltas = [event["delta"] for event in parts if event["type"] == "response.function_call_arguments.delta"]
    assert "".join(deltas) == "".join(call["arguments"] for call in calls)
    done = [event["name"] for event in parts if event["type"] == "response.function_call_arguments.done"]
    assert done == ["weather", "weather"]


def test_thoughts_are_items(hermes: Server) -> None:
    with hermes.client() as client:
        whole = respond(client, input="<think>hm</think>sure").json()
        parts = events(respond(client, input="<think>hm</think>sure", stream=True).text)
    assert [item["type"] for item in whole["output"]] == ["reasoning", "message"]
    assert whole["output"][0]["content"] == [{"type": "reasoning_text", "text": "hm"}]
    assert whole["output"][1]["content"][0]["text"] == "sure"
    assert [event["text"] for event in parts if event["type"] == "response.reasoning_text.done"] == ["hm"]


def test_a_call_can_be_demanded(hermes: Server) -> None:
    with hermes.client() as client:
        choice = {"type": "function", "name": "weather"}
        answer = respond(client, tools=[TOOL], tool_choice=choice, max_output_tokens=200).json()
        assert [item["type"] for item in answer["output"]] == ["function_call"]
        wrong = respond(client, tools=[TOOL], tool_choice={"type": "function", "name": "nobody"})
        assert (wrong.status_code, wrong.json()["error"]["param"][:11]) == (400, "tool_choice")


WRONG: dict[str, list[Any]] = {
    "input": [1, [], {}, None, [1], [{"role": "nobody", "content": "x"}], [{"type": "image_generation_call"}]],
    "instructions": [1, []],
    "max_output_tokens": [0, -1, "x", 1.5, 513],
    "top_logprobs": [-1, 21, "x"],
    "include": ["x", [1]],
    "text": ["x", {"format": {"type": "xml"}}],
    "tools": ["x", [{"type": "web_search"}], [{"type": "function"}]],
    "tool_choice": ["maybe", {"type": "function"}],
    "truncation": ["auto", 1],
    "background": [True, "x"],
    "previous_response_id": ["resp-1", 1],
    "conversation": ["conv-1", {"id": "x"}, 1],
    "metadata": ["x", {"a": 1}],
    "n": [2],
    "prompt_logprobs": [1],
    "temperature": [3],
    "stream": ["x"],
    "reasoning": ["x"],
}


@pytest.mark.parametrize(("field", "value"), [(field, value) for field, values in WRONG.items() for value in values])
def test_every_wrong_value_names_its_field(client: httpx.Client, field: str, value: Any) -> None:
    answer = client.post("/v1/responses", json={"input": "a", field: value})
    assert answer.status_code == 400, answer.text
    error = answer.json()["error"]
    assert error["param"].partition("[")[0].partition(".")[0] == field
    assert field in error["message"]


@pytest.mark.parametrize(
    ("item", "param"),
    [
        ({"role": "user"}, "input[0].content"),
        ({"content": "x"}, "input[0].role"),
        ({"type": "function_call", "call_id": "1", "arguments": "{}"}, "input[0].name"),
        ({"type": "function_call_output", "output": "x"}, "input[0].call_id"),
        ({"role": "user", "content": [{"type": "input_image"}]}, "input[0].content[0]"),
    ],
)
def test_items_that_are_refused(item: dict[str, Any], param: str) -> None:
    with pytest.raises(RequestError) as caught:
        messages_of(input=[item])
    assert caught.value.param == param


def test_errors_speak_this_api(client: httpx.Client) -> None:
    too_long = respond(client, input="x" * 600).json()["error"]
    assert (too_long["code"], too_long["param"]) == ("context_length_exceeded", "input")
    assert respond(client, model="gpt-5").json()["error"]["code"] == "model_not_found"
    answer = respond(client, temprature=1)
    assert answer.headers["x-pllm-ignored-fields"] == "temprature"


def test_openai_client(api: openai.OpenAI) -> None:
    answer = api.responses.create(model="parrot", input="hello there", instructions="x ")
    assert answer.output_text == "x hello there"
    assert answer.usage is not None
    assert answer.usage.output_tokens == 14
    with api.responses.stream(model="parrot", input="hello there") as stream:
        kinds = [event.type for event in stream]
        final = stream.get_final_response()
    assert final.output_text == "hello there"
    assert "response.output_text.delta" in kinds
    with pytest.raises(openai.BadRequestError) as refused:
        api.responses.create(model="parrot", input="x", previous_response_id="resp-1")
    assert refused.value.param == "previous_response_id"


async def _stream_text(url: str) -> str:
    async with openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="any") as api:
        stream = await api.responses.create(model="parrot", input="hello", stream=True)
        return "".join([event.delta async for event in stream if event.type == "response.output_text.delta"])


def test_openai_async_client(server: Server) -> None:
    assert asyncio.run(_stream_text(server.url)) == "hello"

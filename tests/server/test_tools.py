"""Calls of tools over HTTP. The parrot says what it was told, as far as a grammar allows it."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from .servers import Server, byte_tokenizer, running_server

TEMPLATE = """\
{#- <tool_call> </think> -#}
{%- for message in messages %}{{ message.content or '' }}{% endfor -%}
{%- if add_generation_prompt %}{{ '<|im_start|>' }}{% endif -%}
{%- if think %}{{ '<think>\n' }}{% endif -%}
"""
WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string"}},
            "required": ["city"],
            "additionalProperties": False,
        },
    },
}
TIME = {"type": "function", "function": {"name": "get_time"}}
CALL = '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Paris"}}\n</tool_call>'


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tools")
    (folder / "tokenizer").mkdir()
    byte_tokenizer().save(str(folder / "tokenizer" / "tokenizer.json"))
    config = {"eos_token": "<|im_end|>", "chat_template": TEMPLATE}
    (folder / "tokenizer" / "tokenizer_config.json").write_text(json.dumps(config))
    (folder / "generation.json").write_text(json.dumps({"eos_token_id": [258]}))
    (folder / "manifest.json").write_text("{}")
    return folder


@pytest.fixture(scope="module")
def tools_server(directory: Path) -> Iterator[Server]:
    with running_server(directory) as server:
        yield server.wait_ready()


@pytest.fixture
def http(tools_server: Server) -> Iterator[httpx.Client]:
    with tools_server.client() as client:
        yield client


@pytest.fixture
def api(tools_server: Server) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{tools_server.url}/v1", api_key="any", max_retries=0) as api:
        yield api


def ask(http: httpx.Client, content: str, **fields: Any) -> dict[str, Any]:
    body = {"messages": [{"role": "user", "content": content}], "tools": [WEATHER, TIME], **fields}
    reply = http.post("/v1/chat/completions", json=body)
    assert reply.status_code == 200, reply.text
    choice: dict[str, Any] = reply.json()["choices"][0]
    streamed = streamed_choice(http, body)
    for call in choice["message"].get("tool_calls", ()):
        call.pop("id")
    assert streamed == {
        "finish_reason": choice["finish_reason"],
        "content": choice["message"]["content"] or "",
        "reasoning": choice["message"].get("reasoning", ""),
        "calls": choice["message"].get("tool_calls", []),
    }
    return choice


def streamed_choice(http: httpx.Client, body: dict[str, Any]) -> dict[str, Any]:
    """The same, put together from a stream."""
    whole: dict[str, Any] = {"content": "", "reasoning": "", "calls": [], "finish_reason": None}
    with http.stream("POST", "/v1/chat/completions", json={**body, "stream": True}) as reply:
        for line in reply.iter_lines():
            if not line.startswith("data: {"):
                continue
            choice = json.loads(line[6:])["choices"][0]
            delta = choice["delta"]
            whole["content"] += delta.get("content") or ""
            whole["reasoning"] += delta.get("reasoning_content") or ""
            assert delta.get("reasoning") == delta.get("reasoning_content")
            for call in delta.get("tool_calls") or ():
                if "id" in call:
                    assert call["index"] == len(whole["calls"])
                    whole["calls"].append({"type": call["type"], "function": call["function"]})
                else:
                    whole["calls"][call["index"]]["function"]["arguments"] += call["function"]["arguments"]
            whole["finish_reason"] = choice["finish_reason"] or whole["finish_reason"]
    return whole


def function(name: str, arguments: str) -> dict[str, Any]:
    return {"type": "function", "function": {"arguments": arguments, "name": name}}


def test_a_call_of_the_models_own_choice(http: httpx.Client) -> None:
    choice = ask(http, f"Let me see.\n{CALL}")
    assert choice["finish_reason"] == "tool_calls"
    assert choice["message"]["content"] == "Let me see."
    assert choice["message"]["tool_calls"] == [function("get_weather", '{"city": "Paris"}')]
    assert ask(http, CALL)["message"]["content"] is None


def test_parallel_calls_and_not(http: httpx.Client) -> None:
    assert len(ask(http, f"{CALL}\n{CALL}")["message"]["tool_calls"]) == 2
    assert len(ask(http, f"{CALL}\n{CALL}", parallel_tool_calls=False)["message"]["tool_calls"]) == 1


def test_no_tools_or_no_choice_leave_text(http: httpx.Client) -> None:
    for fields in ({"tool_choice": "none"}, {"tools": None}, {"tools": []}):
        choice = ask(http, CALL, **fields)
        assert (choice["message"]["content"], choice["finish_reason"]) == (CALL, "stop")
        assert "tool_calls" not in choice["message"]


def test_a_call_that_is_cut_off(http: httpx.Client) -> None:
    choice = ask(http, CALL, max_tokens=60)
    assert choice["finish_reason"] == "length"
    assert choice["message"]["tool_calls"][0]["function"]["arguments"].startswith('{"city": ')


@pytest.mark.parametrize("content", [CALL, "<tool is what I would rather talk of."])
def test_a_demanded_call(http: httpx.Client, content: str) -> None:
    choice = ask(http, content, tool_choice="required", parallel_tool_calls=False)
    assert choice["message"]["content"] is None
    (call,) = choice["message"]["tool_calls"]
    assert call["function"]["name"] in ("get_weather", "get_time")
    if content == CALL:
        assert choice["finish_reason"] == "tool_calls"
        assert call == function("get_weather", '{"city": "Paris"}')


def test_several_demanded_calls(http: httpx.Client) -> None:
    choice = ask(http, f"{CALL}\n{CALL}", tool_choice="required")
    assert choice["message"]["tool_calls"] == [function("get_weather", '{"city": "Paris"}')] * 2


STRICT = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "strict": True,
        "parameters": {
            "type": "object",
            "properties": {"city": {"enum": ["Paris", "Rome"]}},
            "required": ["city"],
            "additionalProperties": False,
        },
    },
}
WRONG = '<tool_call>\n{"name": "get_weather", "arguments": {"town": 7}}\n</tool_call>'


def test_a_strict_call_of_the_models_own_choice(http: httpx.Client) -> None:
    assert ask(http, WRONG)["message"]["tool_calls"] == [function("get_weather", '{"town": 7}')]
    for said in ("", "Let me see.\n"):
        choice = ask(http, said + WRONG, tools=[STRICT, TIME])
        assert choice["finish_reason"] == "tool_calls"
        assert (choice["message"]["content"] or "").startswith(said.strip())
        (call,) = choice["message"]["tool_calls"]
        assert call["function"]["name"] == "get_weather"
        assert json.loads(call["function"]["arguments"])["city"] in ("Paris", "Rome")
    # What is right stays as it is, and so does what is no call.
    assert (
        ask(http, f"{CALL}\n{CALL}", tools=[STRICT])["message"]["tool_calls"]
        == [function("get_weather", '{"city": "Paris"}')] * 2
    )
    assert len(ask(http, f"{CALL}\n{CALL}", tools=[STRICT], parallel_tool_calls=False)["message"]["tool_calls"]) == 1
    assert ask(http, "Hello <tool {", tools=[STRICT])["message"]["content"] == "Hello <tool {"
    # Others' arguments are a JSON object, and no more is asked of them.
    free = CALL.replace("get_weather", "get_time")
    assert ask(http, free, tools=[STRICT, TIME])["message"]["tool_calls"] == [function("get_time", '{"city": "Paris"}')]


def test_a_strict_call_after_thoughts(http: httpx.Client) -> None:
    message = ask(http, f"<think>\nHm.\n</think>\n\nSo:\n{WRONG}", tools=[STRICT])["message"]
    assert (message["reasoning"], message["content"][:3]) == ("Hm.", "So:")
    assert json.loads(message["tool_calls"][0]["function"]["arguments"])["city"] in ("Paris", "Rome")


def test_a_form_leaves_the_choice_of_a_call(http: httpx.Client) -> None:
    form = {"type": "json_schema", "json_schema": {"name": "x", "schema": {"enum": [12, 13]}}}
    assert ask(http, "13", response_format=form)["message"]["content"] == "13"
    called = ask(http, CALL, response_format=form)
    assert (called["finish_reason"], called["message"]["content"]) == ("tool_calls", None)
    assert called["message"]["tool_calls"] == [function("get_weather", '{"city": "Paris"}')]
    assert json.loads(ask(http, "hello", response_format=form)["message"]["content"]) in (12, 13)


def test_a_named_call(http: httpx.Client) -> None:
    named = {"type": "function", "function": {"name": "get_time"}}
    choice = ask(http, "<tool hello", tool_choice=named)
    assert choice["finish_reason"] == "stop"  # the choice was the client's: OpenAI's own reading
    (call,) = choice["message"]["tool_calls"]
    assert (call["function"]["name"], json.loads(call["function"]["arguments"])) == ("get_time", {})


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"tools": [], "tool_choice": "required"}, "tool_choice"),
        ({"tool_choice": {"type": "function", "function": {"name": "nothing"}}}, "tool_choice"),
        ({"tool_choice": "required", "response_format": {"type": "json_object"}}, "response_format"),
        (
            {
                "tool_choice": "required",
                "tools": [{"type": "function", "function": {"name": "f", "parameters": {"not": {}}}}],
            },
            "tools",
        ),
        (
            {"tools": [{"type": "function", "function": {"name": "f", "parameters": {"not": {}}, "strict": True}}]},
            "tools",
        ),
    ],
)
def test_what_cannot_be_demanded(http: httpx.Client, fields: dict, param: str) -> None:
    body = {"messages": [{"role": "user", "content": "x"}], "tools": [WEATHER], **fields}
    reply = http.post("/v1/chat/completions", json=body)
    assert (reply.status_code, reply.json()["error"]["param"]) == (400, param)


def test_thoughts(http: httpx.Client) -> None:
    choice = ask(http, "<think>\nHm.\n</think>\n\nYes.")
    assert choice["message"]["reasoning"] == choice["message"]["reasoning_content"] == "Hm."
    assert choice["message"]["content"] == "Yes."
    begun = ask(http, "Hm.\n</think>\nYes.", chat_template_kwargs={"think": True})
    # The parrot says the prompt's own beginning of thoughts again at its end.
    assert (begun["message"]["reasoning"], begun["message"]["content"]) == ("Hm.", "Yes.<think>\n")
    both = ask(http, f"<think>\nHm.\n</think>\n\n{CALL}")
    assert both["message"]["reasoning"] == "Hm."
    assert both["finish_reason"] == "tool_calls"


@pytest.mark.parametrize(
    ("content", "fields", "count"),
    [
        ("Yes.", {}, 0),
        ("<think>\nHm.\n</think>\n\nYes.", {}, len("<think>\nHm.\n</think>")),
        ("<think>\nHm.", {}, len("<think>\nHm.") + 1),  # and the end token, which came while it thought
        ("Hm.\n</think>\nYes.", {"chat_template_kwargs": {"think": True}}, len("Hm.\n</think>")),
        ("<think>Hm.</think>", {"n": 2}, 2 * len("<think>Hm.</think>")),
        (f"<think>Hm.</think>{CALL}", {"tools": [WEATHER]}, len("<think>Hm.</think>")),
    ],
)
def test_tokens_of_thoughts_are_told(http: httpx.Client, content: str, fields: dict, count: int) -> None:
    body = {"messages": [{"role": "user", "content": content}], **fields}
    usage = http.post("/v1/chat/completions", json=body).json()["usage"]
    assert usage["completion_tokens_details"] == {"reasoning_tokens": count}
    assert usage["completion_tokens"] >= count
    options = {"stream": True, "stream_options": {"include_usage": True, "continuous_usage_stats": True}}
    with http.stream("POST", "/v1/chat/completions", json=body | options) as reply:
        chunks = [json.loads(line[6:]) for line in reply.iter_lines() if line.startswith("data: {")]
    counts = [chunk["usage"]["completion_tokens_details"]["reasoning_tokens"] for chunk in chunks]
    assert counts == sorted(counts)
    assert counts[-1] == count
    if "n" not in fields and "tools" not in fields:
        details = http.post("/v1/responses", json={"input": content, **fields}).json()["usage"]["output_tokens_details"]
        assert details["reasoning_tokens"] == count


@pytest.mark.parametrize("thoughts", ["", "<think>\nHm {\n</think>\n\n"])
def test_a_form_is_kept_after_thoughts(http: httpx.Client, thoughts: str) -> None:
    form = {"type": "json_schema", "json_schema": {"name": "x", "schema": {"enum": [12, 13]}}}
    choice = ask(http, f"{thoughts}13", response_format=form)
    assert choice["message"]["content"] == "13"
    assert choice["message"].get("reasoning", "") == thoughts[8:12]
    demanded = ask(http, f"{thoughts}{CALL}", tool_choice="required", parallel_tool_calls=False)
    assert demanded["message"]["tool_calls"] == [function("get_weather", '{"city": "Paris"}')]


@pytest.mark.parametrize(
    ("flags", "said", "called"),
    [
        (["--tool-call-parser", "mistral"], '[TOOL_CALLS][{"name": "get_time", "arguments": {}}]', "{}"),
        (["--tool-call-parser", "llama3_json"], '{"name": "get_time", "parameters": {}}', "{}"),
        (["--tool-call-parser", "pythonic"], "[get_time(zone='UTC')]", '{"zone": "UTC"}'),
        (["--tool-call-parser", "none"], CALL, None),
    ],
)
def test_the_operator_chooses_another_style(directory: Path, flags: list[str], said: str, called: str | None) -> None:
    with (
        running_server(directory, *flags, "--reasoning-parser", "none") as server,
        server.wait_ready().client() as http,
    ):
        message = ask(http, said)["message"]
        if called is None:
            assert message["content"] == said
        else:
            assert message["tool_calls"] == [function("get_time", called)]
        demanded = ask(http, "hello", tool_choice={"type": "function", "function": {"name": "get_time"}})["message"]
        assert demanded["tool_calls"] == [function("get_time", "{}")]
        assert ask(http, "<think>x</think>y")["message"]["content"] == "<think>x</think>y"


def test_the_openai_client(api: openai.OpenAI) -> None:
    messages = [{"role": "user", "content": f"See:\n{CALL}"}]
    answer = api.chat.completions.create(model="parrot", messages=messages, tools=[WEATHER])
    (call,) = answer.choices[0].message.tool_calls
    assert (call.type, call.function.name) == ("function", "get_weather")
    strict = {**WEATHER, "function": {**WEATHER["function"], "strict": True}}
    parsed = api.chat.completions.parse(model="parrot", messages=messages, tools=[strict])
    assert parsed.choices[0].message.tool_calls[0].function.parsed_arguments == {"city": "Paris"}
    with api.chat.completions.stream(model="parrot", messages=messages, tools=[strict]) as stream:
        kinds = {event.type for event in stream}
        final = stream.get_final_completion().choices[0]
    assert "tool_calls.function.arguments.delta" in kinds
    assert final.finish_reason == "tool_calls"
    assert final.message.tool_calls[0].function.parsed_arguments == {"city": "Paris"}
    # and the conversation goes on with what was called
    back = [*messages, answer.choices[0].message, {"role": "tool", "tool_call_id": call.id, "content": "Sunny."}]
    assert (
        "Sunny."
        in api.chat.completions.create(model="parrot", messages=back, tools=[WEATHER]).choices[0].message.content
    )


def test_responses_have_calls_and_thoughts_as_items(api: openai.OpenAI) -> None:
    tool = {"type": "function", **WEATHER["function"]}
    said = f"<think>\nHm.\n</think>\n\nLook: {CALL}"
    response = api.responses.create(model="parrot", input=said, tools=[tool])
    assert [item.type for item in response.output] == ["reasoning", "message", "function_call"]
    assert (response.output_text, response.output[2].arguments) == ("Look:", '{"city": "Paris"}')
    with api.responses.stream(model="parrot", input=said, tools=[tool]) as stream:
        assert "response.function_call_arguments.delta" in {event.type for event in stream}
        final = stream.get_final_response()
    assert [item.type for item in final.output] == ["reasoning", "message", "function_call"]

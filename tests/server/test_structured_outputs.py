"""Forms of answers over HTTP. The parrot says its prompt again, as far as the form allows it."""

import json
import re
import time
from typing import Any

import httpx
import openai
import psutil
import pydantic
import pytest

from .servers import Server, StartServer, eventually


def ask(client: httpx.Client, content: str, **fields: Any) -> httpx.Response:
    body = {"messages": [{"role": "user", "content": content}], "max_tokens": 200, **fields}
    return client.post("/v1/chat/completions", json=body)


def said(client: httpx.Client, content: str, **fields: Any) -> str:
    reply = ask(client, content, **fields)
    assert reply.status_code == 200, reply.text
    choice = reply.json()["choices"][0]
    assert choice["finish_reason"] == "stop"
    return choice["message"]["content"]


POINT = {
    "type": "object",
    "properties": {"x": {"type": "integer"}, "y": {"type": "integer"}},
    "required": ["x", "y"],
    "additionalProperties": False,
}


@pytest.mark.parametrize(
    "fields",
    [
        {"response_format": {"type": "json_schema", "json_schema": {"name": "point", "strict": True, "schema": POINT}}},
        {"structured_outputs": {"json": POINT}},
        {"structured_outputs": {"json": json.dumps(POINT)}},
        {"guided_json": POINT},
    ],
)
def test_a_schema(client: httpx.Client, fields: dict) -> None:
    assert said(client, '{"x": 3, "y": 4}', **fields) == '{"x": 3, "y": 4}'
    assert json.loads(said(client, "no JSON at all 12", **fields)).keys() == {"x", "y"}


@pytest.mark.parametrize(
    ("fields", "pattern"),
    [
        ({"structured_outputs": {"regex": "[0-9]{3}-[a-f]"}}, "[0-9]{3}-[a-f]"),
        ({"guided_regex": "(yes|no)!"}, "(yes|no)!"),
        ({"structured_outputs": {"choice": ["red", "green"]}}, "red|green"),
        ({"guided_choice": ["ä", "😀"]}, "ä|😀"),
        ({"structured_outputs": {"grammar": 'root ::= "a" [0-9]+ "."'}}, r"a[0-9]+\."),
        ({"guided_grammar": 'start: "a" NUM\nNUM: /[0-9]{2}/'}, "a[0-9]{2}"),
    ],
)
def test_other_forms(client: httpx.Client, fields: dict, pattern: str) -> None:
    assert re.fullmatch(pattern, said(client, "a77.", **fields))


def test_any_json_object(client: httpx.Client) -> None:
    assert said(client, '{"a": [1, {"b": null}]}', response_format={"type": "json_object"}) == '{"a": [1, {"b": null}]}'


@pytest.mark.parametrize(
    ("fields", "pattern"),
    [
        ({"response_format": {"type": "json_schema", "json_schema": {"name": "answer"}}}, "12|13"),
        ({"guided_json": "answer"}, "12|13"),
        ({"structured_outputs": {"grammar": "pin"}}, "#[0-9]{3}"),
        ({"guided_grammar": "pin"}, "#[0-9]{3}"),
    ],
)
def test_forms_that_the_artifact_brings_along_have_names(client: httpx.Client, fields: dict, pattern: str) -> None:
    assert re.fullmatch(pattern, said(client, "hello", **fields))
    reply = client.post("/v1/completions", json={"prompt": "hello", "max_tokens": 50, **fields})
    assert re.fullmatch(pattern, reply.json()["choices"][0]["text"])


def test_a_name_is_no_form_beside_another_and_no_schema_that_is_given(client: httpx.Client) -> None:
    both = ask(client, "x", structured_outputs={"grammar": "pin", "regex": "a"})
    assert (both.status_code, both.json()["error"]["param"]) == (400, "structured_outputs")
    own = {"type": "json_schema", "json_schema": {"name": "answer", "schema": {"enum": [7]}}}
    assert said(client, "x", response_format=own) == "7"
    unknown = {"type": "json_schema", "json_schema": {"name": "nobody"}}
    assert json.loads(said(client, "[1]", response_format=unknown)) == [1]  # any JSON, as OpenAI reads it


def test_what_the_build_has_compiled_is_not_tried_again(start: StartServer) -> None:
    server = start().wait_ready()
    with server.client() as client:
        assert said(client, "x", guided_json="answer") in ("12", "13")
        assert said(client, "x", guided_json={"enum": [12, 13]}) in ("12", "13")
        children = psutil.Process(server.process.pid).children()
        assert not any("pllm.runtime.grammar_process" in child.cmdline() for child in children)


def test_text_is_no_form(client: httpx.Client) -> None:
    assert said(client, "anything", response_format={"type": "text"}, structured_outputs={}) == "anything"


def test_streamed_and_whole_are_the_same(client: httpx.Client) -> None:
    fields = {"structured_outputs": {"regex": "[a-z]{5}[0-9]{5}"}}
    whole = said(client, "hello 12345", **fields)
    body = {"messages": [{"role": "user", "content": "hello 12345"}], "stream": True, **fields}
    with client.stream("POST", "/v1/chat/completions", json=body) as reply:
        events = [json.loads(line[6:]) for line in reply.iter_lines() if line.startswith("data: {")]
    assert "".join(event["choices"][0]["delta"].get("content") or "" for event in events) == whole


def test_plain_completions_and_several_answers(client: httpx.Client) -> None:
    body = {"prompt": ["ab12", "xy"], "n": 2, "max_tokens": 50, "structured_outputs": {"regex": "[a-z]{2}[0-9]{2}"}}
    choices = client.post("/v1/completions", json=body).json()["choices"]
    assert len(choices) == 4
    assert all(re.fullmatch("[a-z]{2}[0-9]{2}", choice["text"]) for choice in choices)


@pytest.mark.parametrize(
    ("fields", "param", "message"),
    [
        ({"response_format": {"type": "json_schema"}}, "response_format.json_schema", "Missing"),
        ({"response_format": {"type": "xml"}}, "response_format.type", "Invalid"),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"schema": {"not": {}}}}},
            "response_format",
            "not",
        ),
        ({"response_format": {"type": "json_schema", "json_schema": {"schema": []}}}, "response_format", "object"),
        ({"structured_outputs": {"regex": "("}}, "structured_outputs", "regex"),
        ({"structured_outputs": {"regex": "a", "choice": ["b"]}}, "structured_outputs", "exactly one"),
        ({"structured_outputs": {"choice": []}}, "structured_outputs", "choice"),
        ({"guided_regex": "a{,"}, "guided_regex", "regex"),
        ({"guided_grammar": "start: nothing"}, "guided_grammar", "nothing"),
        ({"guided_json": "{"}, "guided_json", "JSON"),
        ({"guided_regex": "a", "guided_choice": ["b"]}, "guided_choice", "exclude"),
        ({"response_format": {"type": "json_object"}, "guided_regex": "a"}, "guided_regex", "exclude"),
        ({"structured_outputs": {"regex": "a" * (1 << 19)}}, "structured_outputs", "characters"),
    ],
)
def test_what_is_no_form_is_refused_by_name(client: httpx.Client, fields: dict, param: str, message: str) -> None:
    reply = ask(client, "hello", **fields)
    assert reply.status_code == 400, reply.text
    error = reply.json()["error"]
    assert error["param"].startswith(param)
    assert message in error["message"]
    assert len(error["message"]) < 500


HOSTILE = {
    "an automaton of a million states": {"guided_json": {"type": "integer", "multipleOf": 99_999_989}},
    "eight thousand properties": {
        "guided_json": {"type": "object", "properties": {f"p{i}": {"type": "string"} for i in range(8_000)}}
    },
    "twenty thousand deep": {"guided_regex": "(" * 20_000 + "a" + ")" * 20_000},
    "an endless reference": {"guided_json": {"$ref": "#"}},
    "brackets": {"guided_grammar": "start: " + "(" * 50_000},
    "two to the fortieth": {
        "guided_grammar": "start: a0\n" + "\n".join(f"a{i}: a{i + 1} a{i + 1}" for i in range(40)) + '\na40: "x"'
    },
    "an intersection": {
        "guided_grammar": "start: A\nA: /(.*x.{9}){3}/ & /(.*y.{10}){3}/ & ~/(.*z.{11}){3}/",
    },
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_forms_are_refused_while_others_are_served(client: httpx.Client, server: Server, name: str) -> None:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="any", max_retries=0) as api:
        stream = api.chat.completions.create(
            model="parrot",
            messages=[{"role": "user", "content": "still here " * 12}],
            stream=True,
            extra_body={"ignore_eos": True, "max_tokens": 60},
        )
        reply = ask(client, "hello", **HOSTILE[name])
        assert reply.status_code == 400, reply.text
        assert reply.json()["error"]["code"] == "invalid_grammar"
        assert len("".join(chunk.choices[0].delta.content or "" for chunk in stream)) == 60
    assert said(client, "7", structured_outputs={"regex": "[0-9]"}) == "7"


def test_what_was_refused_once_is_refused_at_once(client: httpx.Client) -> None:
    form = {"guided_json": {"type": "integer", "multipleOf": 99_999_971}}
    assert ask(client, "hello", **form).status_code == 400
    started = time.monotonic()
    for _ in range(20):
        assert ask(client, "hello", **form).status_code == 400
    assert time.monotonic() - started < 20  # twenty trials would have taken forty seconds of processor time


def test_the_process_that_compiles_may_die(start: StartServer) -> None:
    server = start().wait_ready()

    def trial() -> psutil.Process:
        children = psutil.Process(server.process.pid).children()
        return next(child for child in children if "pllm.runtime.grammar_process" in child.cmdline())

    with server.client() as client:
        assert said(client, "7", guided_regex="[0-9]") == "7"
        first = trial()
        first.kill()
        eventually(lambda: not first.is_running())
        assert said(client, "a", guided_regex="[a-f]") == "a"
        second = trial()
    assert server.stop() == 0
    eventually(lambda: not second.is_running())


def test_the_clients_parse_helper(server: Server) -> None:
    class Point(pydantic.BaseModel):
        x: int
        y: int

    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="any", max_retries=0) as api:
        answer = api.chat.completions.parse(
            model="parrot", messages=[{"role": "user", "content": '{"x":1,"y":2}'}], response_format=Point
        )
        assert answer.choices[0].message.parsed == Point(x=1, y=2)
        with api.chat.completions.stream(
            model="parrot", messages=[{"role": "user", "content": '{"x":1,"y":2}'}], response_format=Point
        ) as stream:
            assert stream.get_final_completion().choices[0].message.parsed == Point(x=1, y=2)

"""Whatever JSON comes, the answer is 200 or a 4xx in the error shape, and nothing is left behind."""

import json
from typing import Any

import httpx
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pllm.runtime.server.protocol.requests import ChatCompletionRequest, CompletionRequest
from pllm.runtime.server.protocol.response_request import ResponsesRequest

from .servers import Server, eventually

LEAVES = (
    st.none()
    | st.booleans()
    | st.integers(-3, 600)
    | st.integers(-(2**70), 2**70)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=20)
    | st.sampled_from(["user", "assistant", "tool", "function", "text", "auto", "none", "hello"])
)
KEYS = st.sampled_from(["role", "content", "type", "text", "function", "name", "arguments", "1", "258", "json_schema"])
VALUES = st.recursive(
    LEAVES,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(KEYS | st.text(max_size=5), inner, max_size=4),
    max_leaves=12,
)
ITEM_KEYS = st.sampled_from(["type", "role", "content", "call_id", "name", "arguments", "output", "summary"])
MESSAGES = st.lists(
    st.fixed_dictionaries({"role": LEAVES, "content": VALUES}, optional={"tool_calls": VALUES}), max_size=3
)


def bodies(kind: type, base: dict[str, Any]) -> st.SearchStrategy[dict[str, Any]]:
    """A request that is fine but for some fields."""
    names = st.sampled_from([*kind.__struct_fields__, "response_format", "audio", "unheard_of"])
    wrong = st.dictionaries(names, VALUES, max_size=4)
    return wrong.map(lambda fields: {**base, **fields})


def check(client: httpx.Client, path: str, body: dict[str, Any]) -> None:
    answer = client.post(path, content=json.dumps(body), headers={"content-type": "application/json"})
    assert answer.status_code in (200, 400, 404), (answer.text, body)
    if answer.status_code != 200:
        assert answer.json()["error"]["message"]
    elif body.get("stream"):
        assert '"error"' not in answer.text
        assert answer.text.endswith("data: [DONE]\n\n")


FUZZ = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@FUZZ
@given(body=bodies(ChatCompletionRequest, {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 4}))
def test_chat(client: httpx.Client, body: dict[str, Any]) -> None:
    check(client, "/v1/chat/completions", body)


@FUZZ
@given(messages=MESSAGES, tools=VALUES)
def test_conversations(client: httpx.Client, messages: Any, tools: Any) -> None:
    check(client, "/v1/chat/completions", {"messages": messages, "tools": tools, "max_tokens": 4})


@FUZZ
@given(body=bodies(CompletionRequest, {"prompt": "hi", "max_tokens": 4}))
def test_completions(client: httpx.Client, body: dict[str, Any]) -> None:
    check(client, "/v1/completions", body)


@FUZZ
@given(
    body=bodies(ResponsesRequest, {"input": "hi", "max_output_tokens": 4}),
    items=st.none() | st.lists(st.dictionaries(ITEM_KEYS, VALUES, max_size=4), max_size=3),
)
def test_responses(client: httpx.Client, body: dict[str, Any], items: Any) -> None:
    body = body if items is None else {**body, "input": items}
    answer = client.post("/v1/responses", content=json.dumps(body), headers={"content-type": "application/json"})
    assert answer.status_code in (200, 400, 404), (answer.text, body)
    if answer.status_code != 200:
        assert answer.json()["error"]["message"]
    elif body.get("stream"):
        assert "response.failed" not in answer.text


@FUZZ
@given(body=st.binary(max_size=50) | VALUES.map(lambda value: json.dumps(value).encode()))
def test_bytes(client: httpx.Client, body: bytes) -> None:
    for path in ("/v1/completions", "/v1/chat/completions", "/v1/responses", "/tokenize", "/detokenize"):
        answer = client.post(path, content=body, headers={"content-type": "application/json"})
        assert answer.status_code in (200, 400), (path, answer.text)


def test_nothing_is_left_behind(server: Server) -> None:
    eventually(server.is_idle)

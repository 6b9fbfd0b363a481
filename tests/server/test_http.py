"""What HTTP clients see, over real sockets."""

import json
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx
import pytest

from .servers import Server, StartServer, eventually, running_server

MESSAGES = [{"role": "user", "content": "hello"}]


def chat(client: httpx.Client, **fields: Any) -> httpx.Response:
    return client.post("/v1/chat/completions", json={"messages": MESSAGES} | fields)


def complete(client: httpx.Client, prompt: Any = "hello", **fields: Any) -> httpx.Response:
    return client.post("/v1/completions", json={"prompt": prompt, "max_tokens": 64, **fields})


def events(response: httpx.Response) -> list[Any]:
    assert response.headers["content-type"].startswith("text/event-stream")
    blocks = response.text.split("\n\n")
    assert blocks[-2:] == ["data: [DONE]", ""]
    return [json.loads(block.removeprefix("data: ")) for block in blocks[:-2]]


def error_of(response: httpx.Response) -> dict[str, Any]:
    assert set(response.json()) == {"error"}
    error = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert isinstance(error["message"], str)
    assert error["message"]
    assert error["code"] is None or isinstance(error["code"], str)
    assert response.headers["x-request-id"]
    return dict(error)


class TestAnswers:
    def test_chat(self, client: httpx.Client) -> None:
        answer = chat(client).json()
        assert answer["object"] == "chat.completion"
        assert answer["id"].startswith("chatcmpl-")
        assert answer["model"] == "parrot"
        choice = answer["choices"][0]
        assert choice["message"] == {"role": "assistant", "content": "hello", "refusal": None}
        assert (choice["finish_reason"], choice["stop_reason"], choice["logprobs"]) == ("stop", None, None)
        usage = answer["usage"]
        assert (usage["completion_tokens"], usage["total_tokens"]) == (6, usage["prompt_tokens"] + 6)
        assert usage["prompt_tokens_details"]["cached_tokens"] == 0

    def test_cached_tokens_are_told(self, client: httpx.Client) -> None:
        prompt = "the same prefix, longer than a block or two"
        complete(client, prompt)
        assert complete(client, prompt).json()["usage"]["prompt_tokens_details"]["cached_tokens"] >= 16
        salted = complete(client, prompt, cache_salt="mine").json()
        assert salted["usage"]["prompt_tokens_details"]["cached_tokens"] == 0

    def test_streamed_is_whole(self, client: httpx.Client) -> None:
        text = "naïve café, 你好 😀 and the end"
        for fields in ({}, {"n": 2, "temperature": 0}, {"stop": "the"}, {"max_tokens": 12}):
            body = {"messages": [{"role": "user", "content": text}], **fields}
            whole = client.post("/v1/chat/completions", json=body).json()["choices"]
            chunks = events(client.post("/v1/chat/completions", json={**body, "stream": True}))
            for choice in whole:
                own = [part for chunk in chunks for part in chunk["choices"] if part["index"] == choice["index"]]
                assert own[0]["delta"] == {"role": "assistant", "content": ""}
                streamed = "".join(part["delta"].get("content", "") for part in own)
                assert streamed == choice["message"]["content"]
                assert [part["finish_reason"] for part in own if part["finish_reason"]] == [choice["finish_reason"]]
                assert own[-1]["stop_reason"] == choice["stop_reason"]

    def test_stop_string(self, client: httpx.Client) -> None:
        choice = complete(client, "one two three", stop=[" three", " two"]).json()["choices"][0]
        assert (choice["text"], choice["finish_reason"], choice["stop_reason"]) == ("one", "stop", " two")
        choice = complete(client, "one two", stop=" two", include_stop_str_in_output=True).json()["choices"][0]
        assert choice["text"] == "one two"

    def test_usage_in_a_stream(self, client: httpx.Client) -> None:
        chunks = events(chat(client, stream=True))
        assert not any("usage" in chunk for chunk in chunks)
        chunks = events(chat(client, stream=True, stream_options={"include_usage": True}))
        assert [chunk["usage"] for chunk in chunks[:-1]] == [None] * (len(chunks) - 1)
        assert chunks[-1]["choices"] == []
        assert chunks[-1]["usage"]["completion_tokens"] == 6
        chunks = events(chat(client, stream=True, stream_options={"continuous_usage_stats": True}))
        counts = [chunk["usage"]["completion_tokens"] for chunk in chunks]
        assert counts == sorted(counts)
        assert counts[-1] == 6

    def test_completions_of_every_form(self, client: httpx.Client) -> None:
        answer = complete(client, ["ab", "cde"], n=2).json()
        assert [choice["index"] for choice in answer["choices"]] == [0, 1, 2, 3]
        assert [choice["text"] for choice in answer["choices"]] == ["ab", "ab", "cde", "cde"]
        assert answer["usage"]["prompt_tokens"] == 5
        assert complete(client, [104, 105]).json()["choices"][0]["text"] == "hi"
        assert [c["text"] for c in complete(client, [[104], [105]]).json()["choices"]] == ["h", "i"]
        assert len(complete(client, "x" * 40, max_tokens=None).json()["choices"][0]["text"]) == 16

    def test_echo_and_completion_logprobs(self, client: httpx.Client) -> None:
        for prompt in ("hey", [104, 101, 121]):
            choice = complete(client, prompt, echo=True, logprobs=1, max_tokens=2).json()["choices"][0]
            assert choice["text"] == "heyhe"
            logprobs = choice["logprobs"]
            assert logprobs["tokens"] == list("heyhe")
            assert logprobs["text_offset"] == [0, 1, 2, 3, 4]
            assert logprobs["token_logprobs"] == [None, -1.5, -1.5, -1.5, -1.5]
            assert logprobs["top_logprobs"][:2] == [None, {"x": -0.5, "e": -1.5}]
            streamed = events(complete(client, prompt, echo=True, logprobs=1, max_tokens=2, stream=True))
            parts = [chunk["choices"][0] for chunk in streamed]
            assert "".join(part["text"] for part in parts) == "heyhe"
            for key, values in logprobs.items():
                assert [value for part in parts for value in part["logprobs"][key]] == values

    def test_only_the_prompt(self, client: httpx.Client) -> None:
        answer = complete(client, "hey", echo=True, logprobs=0, max_tokens=0).json()
        assert answer["choices"][0]["text"] == "hey"
        assert answer["choices"][0]["logprobs"]["tokens"] == list("hey")
        assert answer["usage"]["completion_tokens"] == 0
        assert error_of(complete(client, max_tokens=0))["param"] == "max_tokens"

    def test_chat_logprobs(self, client: httpx.Client) -> None:
        content = chat(client, logprobs=True, top_logprobs=3, max_tokens=2).json()["choices"][0]["logprobs"]["content"]
        assert [entry["token"] for entry in content] == ["h", "e"]
        assert content[0]["bytes"] == [104]
        assert [top["token"] for top in content[0]["top_logprobs"]] == ["x", "h", "z"]
        assert content[0]["top_logprobs"][2]["logprob"] == -9999.0
        half = complete(client, "ä", logprobs=0).json()["choices"][0]
        assert half["text"] == "ä"
        assert chat(client, logprobs=True).json()["choices"][0]["logprobs"]["content"][0]["top_logprobs"] == []

    def test_prompt_logprobs(self, client: httpx.Client) -> None:
        answer = complete(client, "hey", prompt_logprobs=1).json()["choices"][0]["prompt_logprobs"]
        assert answer[0] is None
        assert answer[1][str(ord("e"))] == {"logprob": -1.5, "rank": 2, "decoded_token": "e"}
        assert len(answer) == 3

    def test_tools_reach_the_template(self, client: httpx.Client) -> None:
        tools = [{"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}]
        assert "weather" in chat(client, tools=tools, max_tokens=100).json()["choices"][0]["message"]["content"]
        content = chat(client, tools=tools, tool_choice="none").json()["choices"][0]["message"]["content"]
        assert content == "hello"
        history = [
            *MESSAGES,
            {"role": "assistant", "tool_calls": [{"id": "1", "function": {"name": "f", "arguments": '{"a": 1}'}}]},
            {"role": "tool", "tool_call_id": "1", "content": "!"},
        ]
        answer = client.post("/v1/chat/completions", json={"messages": history})
        assert answer.json()["choices"][0]["message"]["content"] == 'hellof{"a": 1}!'

    def test_template_arguments(self, client: httpx.Client) -> None:
        answer = chat(client, chat_template_kwargs={"shout": "!!"}).json()
        assert answer["choices"][0]["message"]["content"] == "hello!!"

    def test_content_parts(self, client: httpx.Client) -> None:
        parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
        answer = client.post("/v1/chat/completions", json={"messages": [{"role": "user", "content": parts}]})
        assert answer.json()["choices"][0]["message"]["content"] == "a\nb"

    def test_models(self, client: httpx.Client) -> None:
        answer = client.get("/v1/models").json()
        assert answer["object"] == "list"
        assert [card["id"] for card in answer["data"]] == ["parrot", "tests/parrot"]
        assert answer["data"][0]["object"] == "model"
        assert answer["data"][0]["max_model_len"] == 512
        assert client.get("/v1/models/tests/parrot").json()["id"] == "tests/parrot"
        assert client.get("/v1/models/nobody").status_code == 404
        assert chat(client, model="tests/parrot").json()["model"] == "tests/parrot"

    def test_tokenize_and_back(self, client: httpx.Client) -> None:
        answer = client.post("/tokenize", json={"prompt": "hé", "return_token_strs": True}).json()
        assert answer == {"count": 3, "max_model_len": 512, "tokens": [104, 195, 169], "token_strs": ["h", "�", "�"]}
        assert client.post("/detokenize", json={"tokens": [104, 195, 169]}).json() == {"prompt": "hé"}
        assert client.post("/tokenize", json={"messages": MESSAGES}).json()["tokens"][-1] == 257
        assert error_of(client.post("/tokenize", json={}))["param"] == "prompt"

    def test_small_things(self, client: httpx.Client) -> None:
        assert (client.get("/health").status_code, client.get("/health").content) == (200, b"")
        assert client.get("/ready").status_code == 200
        assert client.get("/version").json()["version"]
        assert client.post("/reset_prefix_cache").status_code == 200
        assert client.get("/health", headers={"x-request-id": "mine-1"}).headers["x-request-id"] == "mine-1"
        assert client.get("/health", headers={"x-request-id": "no spaces"}).headers["x-request-id"].startswith("req-")

    def test_the_document_describes_the_routes(self, client: httpx.Client) -> None:
        document = client.get("/openapi.json").json()
        properties = document["components"]["schemas"]["ChatCompletionRequest"]["properties"]
        assert properties["temperature"]["anyOf"][0]["maximum"] == 2
        for path, operations in document["paths"].items():
            for method in operations:
                answer = client.request(method, path.replace("{name}", "parrot"), json={} if method == "post" else None)
                assert answer.status_code in (200, 400), path
        page = client.get("/docs").text
        assert "/v1/chat/completions" in page
        assert "http://" not in page
        assert "https://" not in page


class TestErrors:
    @pytest.mark.parametrize(
        "path", ["/v1/chat/completions", "/v1/completions", "/v1/responses", "/tokenize", "/detokenize"]
    )
    @pytest.mark.parametrize(
        "body", [b"", b"{", b"[]", b"\xff\xfe", b'{"prompt": NaN}', b"[" * 100_000, b'{"a":' * 50_000, b"null"]
    )
    def test_garbage(self, client: httpx.Client, path: str, body: bytes) -> None:
        answer = client.post(path, content=body, headers={"content-type": "application/json"})
        assert answer.status_code == 400
        assert error_of(answer)["type"] == "invalid_request_error"

    def test_context_length(self, client: httpx.Client) -> None:
        answer = complete(client, "x" * 600)
        error = error_of(answer)
        assert (answer.status_code, error["code"], error["param"]) == (400, "context_length_exceeded", "prompt")
        assert "maximum context length is 512 tokens" in error["message"]
        assert "600 input tokens" in error["message"]
        for answer in (
            complete(client, "x" * (4 << 20)),
            chat(client, messages=[{**MESSAGES[0], "content": "x" * (4 << 20)}]),
        ):
            assert (answer.status_code, error_of(answer)["code"]) == (400, "context_length_exceeded")
        answer = complete(client, "x", max_tokens=513)
        assert (answer.status_code, error_of(answer)["param"]) == (400, "max_tokens")
        answer = complete(client, "x" * 500, max_tokens=100, ignore_eos=True).json()
        assert answer["usage"]["completion_tokens"] == 12  # cut to the room there is

    @pytest.mark.parametrize(
        ("fields", "param"),
        [
            ({"prompt": ""}, "prompt"),
            ({"prompt": [300]}, "prompt"),
            ({"prompt": [[1], []]}, "prompt"),
            ({"logit_bias": {"300": 1}}, "logit_bias"),
            ({"allowed_token_ids": [300]}, "allowed_token_ids"),
            ({"temperature": 3}, "temperature"),
            ({"n": 129}, "n"),
            ({"response_format": {"type": "json_object"}, "guided_regex": "a"}, "guided_regex"),
        ],
    )
    def test_fields_at_fault(self, client: httpx.Client, fields: dict[str, Any], param: str) -> None:
        answer = client.post("/v1/completions", json={"prompt": "x", **fields})
        assert (answer.status_code, error_of(answer)["param"]) == (400, param)

    def test_unknown_model(self, client: httpx.Client) -> None:
        answer = chat(client, model="gpt-4o")
        error = error_of(answer)
        assert (answer.status_code, error["code"], error["param"]) == (404, "model_not_found", "model")

    def test_a_template_that_refuses(self, client: httpx.Client) -> None:
        answer = client.post("/v1/chat/completions", json={"messages": [{"role": "refused", "content": "x"}]})
        assert error_of(answer)["param"] == "messages[0].role"

    def test_unknown_fields_are_named(self, client: httpx.Client, start: StartServer) -> None:
        answer = chat(client, temprature=0.5, **{"naïve\nfield": 1})
        assert answer.status_code == 200
        assert answer.headers["x-pllm-ignored-fields"] == "na\\xefve\\nfield, temprature"
        server = start("--unknown-fields", "refuse").wait_ready()
        with server.client() as strict:
            assert error_of(chat(strict, temprature=0.5))["param"] == "temprature"
            assert chat(strict, metadata={"a": "b"}).status_code == 200

    def test_routes_and_methods(self, client: httpx.Client) -> None:
        answer = client.get("/v1/nothing")
        assert (answer.status_code, error_of(answer)["type"]) == (404, "not_found_error")
        answer = client.get("/v1/chat/completions")
        assert (answer.status_code, answer.headers["allow"]) == (405, "POST")
        assert "POST" in error_of(answer)["message"]
        assert client.delete("/health").status_code == 405
        assert client.head("/health").status_code == 200

    def test_body_limits(self, client: httpx.Client) -> None:
        answer = client.post("/v1/completions", content=b"x" * (33 << 20), headers={"content-type": "application/json"})
        assert (answer.status_code, error_of(answer)["code"]) == (413, "body_too_large")

        def pieces() -> Any:
            yield from [b"x" * (1 << 20)] * 34

        answer = client.post("/v1/completions", content=pieces(), headers={"content-type": "application/json"})
        assert answer.status_code == 413
        answer = client.post("/v1/completions", data={"prompt": "x"})
        assert (answer.status_code, "application/json" in error_of(answer)["message"]) == (415, True)
        assert client.get("/health").status_code == 200

    def test_all_bodies_together(self, start: StartServer) -> None:
        server = start("--max-body", "100000").wait_ready()
        head = b"POST /tokenize HTTP/1.1\r\nhost: x\r\ncontent-length: 99999\r\n\r\n"
        with ExitStack() as stack, server.client() as client:
            for _ in range(16):
                connection = stack.enter_context(socket.create_connection(("127.0.0.1", server.port)))
                connection.sendall(head + b" " * 99998)
            eventually(lambda: client.post("/tokenize", json={"prompt": "x" * 5000}).status_code == 429)
        with server.client() as client:
            eventually(lambda: client.post("/tokenize", json={"prompt": "x" * 5000}).status_code == 200)

    def test_one_failing_sequence_fails_alone(self, server: Server, client: httpx.Client) -> None:
        answer = complete(client, seed=9003)
        assert (answer.status_code, error_of(answer)["type"]) == (500, "server_error")
        chunks = events(complete(client, seed=9003, stream=True))
        assert chunks[0]["choices"][0]["text"] == "h"
        assert chunks[-1]["error"]["type"] == "server_error"
        assert complete(client).status_code == 200
        eventually(server.is_idle)


class TestSockets:
    def talk(self, server: Server, data: bytes, *, limit: float = 20) -> bytes:
        with socket.create_connection(("127.0.0.1", server.port), timeout=limit) as connection:
            connection.sendall(data)
            answer = b""
            while True:
                part = connection.recv(65536)
                if not part:
                    return answer
                answer += part

    @pytest.mark.parametrize(
        "data",
        [
            b"\x00\x01\x02\r\n\r\n",
            b"GET\r\n\r\n",
            b"GET /\xff HTTP/1.1\r\n\r\n",
            b"\x16\x03\x01\x02\x00\x01",
            b"GET / HTTP/9\r\n\r\n",
        ],
    )
    def test_what_is_no_http(self, server: Server, data: bytes) -> None:
        answer = self.talk(server, data)
        assert answer.startswith(b"HTTP/1.1 400 ")
        assert json.loads(answer.partition(b"\r\n\r\n")[2])["error"]["type"] == "invalid_request_error"

    def test_huge_headers(self, server: Server, client: httpx.Client) -> None:
        for headers in (b"a: " + b"x" * 100_000 + b"\r\n", b"a: b\r\n" * 20_000, b"a: " + b"x" * 400_000):
            answer = self.talk(server, b"GET /health HTTP/1.1\r\n" + headers)
            assert answer.startswith(b"HTTP/1.1 431 "), headers[:20]
        assert client.get("/health").status_code == 200

    def test_a_client_that_closes_its_side_or_says_nothing(self, server: Server, client: httpx.Client) -> None:
        with socket.create_connection(("127.0.0.1", server.port)) as connection:
            connection.shutdown(socket.SHUT_WR)
        with socket.create_connection(("127.0.0.1", server.port)) as connection:
            connection.sendall(b"POST /v1/completions HTTP/1.1\r\ncontent-length: 100\r\n\r\n{")
        assert client.get("/health").status_code == 200

    def test_slow_clients(self, start: StartServer) -> None:
        server = start("--client-timeout", "0.3").wait_ready()
        assert self.talk(server, b"") == b""
        assert self.talk(server, b"GET /health HTTP/1.1\r\nhost:") == b""
        late = b"POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-length: 100\r\n\r\n{"
        assert self.talk(server, late).startswith(b"HTTP/1.1 408 ")

    def test_pipelined_requests(self, server: Server) -> None:
        one = b"GET /version HTTP/1.1\r\nhost: x\r\n\r\n"
        answer = self.talk(server, one * 3 + b"GET /version HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")
        assert answer.count(b"HTTP/1.1 200 OK") == 4


@pytest.fixture(scope="module")
def locked(artifact: Path) -> Iterator[Server]:
    """A server with a key."""
    with running_server(artifact, env={"PLLM_API_KEY": "schlüssel-1"}) as server:
        yield server.wait_ready()


class TestKeys:
    def test_every_route_but_health_needs_it(self, locked: Server) -> None:
        with locked.client() as client:
            assert client.get("/health").status_code == 200
            for path in [
                "/v1/models",
                "/metrics",
                "/docs",
                "/openapi.json",
                "/version",
                "/nothing",
                "/%68ealth",
            ]:
                answer = client.get(path)
                assert (answer.status_code, error_of(answer)["code"]) == (401, "invalid_api_key"), path
                assert answer.headers["www-authenticate"] == "Bearer"
            for path in ["/v1/chat/completions", "/v1/responses", "/tokenize", "/health/../tokenize"]:
                assert client.post(path, json={}).status_code == 401

    @pytest.mark.parametrize(
        "target", [b"//health", b"//", b"/.", b"/%2f", b"/./health", b"/health/", b"http://x/metrics", b"/;/health"]
    )
    def test_paths_that_only_look_like_open_ones(self, locked: Server, target: bytes) -> None:
        # Over a socket: clients would tidy them up.
        with socket.create_connection(("127.0.0.1", locked.port), timeout=20) as connection:
            connection.sendall(b"GET " + target + b" HTTP/1.1\r\nhost: x\r\n\r\n")
            assert connection.recv(4096).startswith(b"HTTP/1.1 401 ")

    @pytest.mark.parametrize("given", ["schlüssel-2", "x", "schlüssel-1 x", "schlüssel-"])
    def test_wrong_keys(self, locked: Server, given: str) -> None:
        headers = {"authorization": f"Bearer {given}".encode()}
        with locked.client(headers=headers) as client:
            assert client.get("/v1/models").status_code == 401

    def test_the_right_key(self, locked: Server) -> None:
        with locked.client(headers={"authorization": "bearer schlüssel-1".encode()}) as client:
            assert client.get("/v1/models").status_code == 200
            assert client.get("/v1/models", headers=[(b"authorization", b"Basic x")]).status_code == 401
        log = "".join(locked.log)
        assert "schl" not in log

    def test_without_a_key_any_is_taken(self, client: httpx.Client) -> None:
        assert client.get("/v1/models", headers={"authorization": "Bearer whatever"}).status_code == 200


def test_neighbours_go_on_while_a_large_body_is_tokenised(server: Server, client: httpx.Client) -> None:
    def large() -> None:
        with server.client() as other:
            assert other.post("/tokenize", json={"prompt": "x" * (1 << 20)}).json()["count"] == 1 << 20

    thread = threading.Thread(target=large)
    thread.start()
    slowest = 0.0
    while thread.is_alive():
        before = time.monotonic()
        assert client.get("/health").status_code == 200
        slowest = max(slowest, time.monotonic() - before)
    thread.join()
    assert slowest < 5  # liveness: the loop was never held for the whole work

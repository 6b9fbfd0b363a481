"""Clients that mean harm, or are merely odd: what each gets, and that nobody else notices."""

import asyncio
import json
import signal
import socket
from collections import Counter
from contextlib import suppress
from typing import Any

import httpx
import pytest

from .servers import Server, StartServer, eventually

MESSAGES = [{"role": "user", "content": "hello"}]
HEAD = b"POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\nconnection: close\r\n"
LONG = {"prompt": "abc", "max_tokens": 150, "ignore_eos": True, "stream": True}


def nested(depth: int, opening: str = "[", closing: str = "]") -> str:
    return opening * depth + "1" + closing * depth


def post(client: httpx.Client, path: str, body: str | bytes | dict[str, Any], **headers: str) -> httpx.Response:
    content = json.dumps(body) if isinstance(body, dict) else body
    return client.post(path, content=content, headers={"content-type": "application/json", **headers})


@pytest.mark.parametrize("depth", [200, 900, 2000])
@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/chat/completions", '{"messages": [{"role": "user", "content": "x", "more": LIST}]}'),
        ("/v1/chat/completions", '{"messages": [{"role": "user", "content": "x"}], "audio": LIST}'),
        ("/v1/chat/completions", '{"messages": [{"role": "user", "content": "x"}], "guided_json": SCHEMA}'),
        (
            "/v1/chat/completions",
            '{"messages": [{"role": "user", "content": "x"}], "chat_template_kwargs": {"shout": LIST}}',
        ),
        (
            "/v1/chat/completions",
            """{"messages": [{"role": "user", "content": "x"}], "tools": [{"type": "function", "function":
            {"name": "f", "strict": true, "parameters": SCHEMA}}]}""",
        ),
        (
            "/v1/chat/completions",
            '{"messages": [{"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": "LIST"}}]}]}',
        ),
        ("/v1/responses", '{"input": "x", "tools": [{"type": "function", "name": "f", "parameters": SCHEMA}]}'),
        ("/tokenize", '{"messages": [{"role": "user", "content": "x", "more": LIST}]}'),
    ],
)
def test_what_is_nested_too_deeply(client: httpx.Client, path: str, body: str, depth: int) -> None:
    text = body.replace("LIST", nested(depth)).replace("SCHEMA", nested(depth, '{"items":', "}").replace("1", "{}"))
    reply = post(client, path, text)
    assert reply.status_code in (200, 400), reply.text
    if reply.status_code == 400:
        assert reply.json()["error"]["type"] == "invalid_request_error"


@pytest.mark.parametrize(
    "name",
    ["self", "messages", "tools", "documents", "raise_exception", "strftime_now", "namespace", "range", "loop",
     "caller", "__class__", "", "with space", "ä", "bos_token", "tojson", "in_parts", "return_dict"],
)  # fmt: skip
@pytest.mark.parametrize("value", [1, "x", None, [], {}])
def test_template_arguments_of_any_name(client: httpx.Client, name: str, value: Any) -> None:
    reply = post(client, "/v1/chat/completions", {"messages": MESSAGES, "chat_template_kwargs": {name: value}})
    assert reply.status_code in (200, 400), reply.text


@pytest.mark.parametrize("text", ["\ud800", "\udfff x", "\x00", "\uffff", "\u202e", "\\", '"', "\n\r", "a" * 5000])
def test_odd_texts_everywhere(client: httpx.Client, text: str) -> None:
    function = {"name": text, "description": text}
    bodies: list[dict[str, Any]] = [
        {"messages": [{"role": "user", "content": text}]},
        {"messages": MESSAGES, "tools": [{"type": "function", "function": function}]},
        {"messages": MESSAGES, "tools": [{"type": "function", "function": {**function, "strict": True}}]},
        {"messages": MESSAGES, "tool_choice": "required", "tools": [{"type": "function", "function": function}]},
        *({"messages": MESSAGES, field: text} for field in ("cache_salt", "user", "stop", "guided_regex", "model")),
        *({"messages": MESSAGES, field: [text]} for field in ("bad_words", "guided_choice", "stop")),
    ]
    for body in bodies:
        reply = post(client, "/v1/chat/completions", {**body, "max_tokens": 20})
        assert reply.status_code in (200, 400, 404), (body, reply.text)


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        ("/v1/completions", '{"prompt": "x", "best_of": NUMBER}', "best_of"),
        ("/v1/completions", '{"prompt": "x", "seed": NUMBER}', "seed"),
        ("/v1/chat/completions", '{"messages": [{"role": "user", "content": "x", "more": NUMBER}]}', "messages"),
        ("/detokenize", '{"tokens": [2147483647]}', "tokens"),
        ("/v1/chat/completions", '{"messages": [{"role": "user", "content": "x"}], "echo": true}', "echo"),
    ],
)
def test_fields_at_fault_are_named(client: httpx.Client, path: str, body: str, param: str) -> None:
    reply = post(client, path, body.replace("NUMBER", "9" * 5000))
    assert (reply.status_code, reply.json()["error"]["param"]) == (400, param)


def test_compressed_bodies_are_refused(client: httpx.Client) -> None:
    assert post(client, "/v1/completions", b"\x1f\x8b\x08", **{"content-encoding": "gzip"}).status_code == 415
    plain = post(client, "/v1/completions", {"prompt": "x"}, **{"content-encoding": "identity"})
    assert plain.status_code == 200


def test_the_developer_speaks_as_the_system_where_a_template_knows_no_developer(start: StartServer, tmp_path) -> None:
    template = "{% for m in messages %}{{ m.role }}:{{ m.content }};{% endfor %}"
    body = {"messages": [{"role": "developer", "content": "a"}, *MESSAGES], "max_tokens": 60}
    for source, said in (
        (template, "system:a;user:hello;"),
        (template + "{# developer #}", "developer:a;user:hello;"),
    ):
        path = tmp_path / "template"
        path.write_text(source)
        with start("--chat-template", str(path)).wait_ready().client() as client:
            reply = post(client, "/v1/chat/completions", body).json()
            assert reply["choices"][0]["message"]["content"] == said


def test_echoed_prompts_that_run_one_after_another(client: httpx.Client) -> None:
    """Twenty answers in a server of eight: when the stream begins, most prompts have no log-probabilities yet."""
    prompts = [f"{number:03d}" * 9 for number in range(10)]
    body = {"prompt": prompts, "n": 2, "echo": True, "logprobs": 2, "max_tokens": 3, "stream": True}
    texts: Counter[int] = Counter()
    said: dict[int, str] = {}
    for line in post(client, "/v1/completions", body).text.splitlines():
        if line.startswith("data: {"):
            for choice in json.loads(line[6:])["choices"]:
                index = choice["index"]
                said[index] = said.get(index, "") + choice["text"]
                texts[index] += len(choice["logprobs"]["tokens"])
    assert said == {number: prompts[number // 2] + prompts[number // 2][:3] for number in range(20)}
    assert set(texts.values()) == {30}


class TestSockets:
    def talk(self, server: Server, data: bytes) -> bytes:
        with socket.create_connection(("127.0.0.1", server.port), timeout=30) as connection:
            connection.sendall(data)
            answer = b""
            while part := connection.recv(65536):
                answer += part
            return answer

    @pytest.mark.parametrize(
        ("data", "status"),
        [
            (HEAD + b"content-length: 4\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n", b"400"),
            (HEAD + b"content-length: 1\r\ncontent-length: 2\r\n\r\n{}", b"400"),
            (HEAD + b"content-length: -1\r\n\r\n", b"400"),
            (HEAD + b"transfer-encoding: chunked\r\n\r\nZZ\r\n", b"400"),
            (HEAD + b"transfer-encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n" + b"t: x\r\n" * 20_000 + b"\r\n", b"400/431"),
            (b"GET /" + b"a" * 200_000 + b" HTTP/1.1\r\nhost: x\r\n\r\n", b"431"),
            (b"GET /health HTTP/1.1\r\nhost: x\r\nx: a\x00b\r\n\r\n", b"400"),
            (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", b"400"),
            (b"GET http://x/health HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n", b"200"),
            (HEAD + b'expect: 100-continue\r\ncontent-length: 15\r\n\r\n{"prompt": "a"}', b"100"),
        ],
    )
    def test_odd_requests(self, server: Server, data: bytes, status: bytes) -> None:
        answer = self.talk(server, data)
        assert answer[9:12] in status.split(b"/"), answer[:200]

    def test_thousands_of_requests_in_one_go(self, server: Server) -> None:
        one = b"GET /version HTTP/1.1\r\nhost: x\r\n\r\n"
        last = b"GET /version HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n"
        assert self.talk(server, one * 4000 + last).count(b"HTTP/1.1 200 OK") == 4001

    def test_garbage_amid_an_answer_ends_the_connection_and_the_request(self, start: StartServer) -> None:
        server = start(env={"PLLM_FAKE_STEP": "0.02"}).wait_ready()
        body = json.dumps(LONG).encode()
        with socket.create_connection(("127.0.0.1", server.port), timeout=30) as connection:
            head = HEAD.replace(b"connection: close\r\n", b"")
            connection.sendall(head + b"content-length: %d\r\n\r\n" % len(body) + body)
            answer = connection.recv(65536)
            assert answer.startswith(b"HTTP/1.1 200 OK")
            connection.sendall(b"\x00garbage\r\n\r\n")
            with suppress(ConnectionResetError):
                while part := connection.recv(65536):
                    answer += part
        assert answer.count(b"HTTP/1.1") == 1
        eventually(server.is_idle)
        assert server.stop() == 0
        assert "Traceback" not in "".join(server.log)


class TestUnderLoad:
    """Sixty-four streams at once, and then something happens."""

    CLIENTS = 64

    async def stream(self, server: Server, begun: asyncio.Semaphore) -> str:
        """One stream, read to its end: how it ended."""
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
        body = json.dumps(LONG).encode()
        writer.write(HEAD + b"content-length: %d\r\n\r\n" % len(body) + body)
        answer = await reader.read(1024)
        begun.release()
        answer += await reader.read()
        writer.close()
        if answer[9:12] != b"200":
            return answer[9:12].decode()
        assert answer.rstrip(b"\r\n0").endswith(b"data: [DONE]"), answer[-200:]
        return "error" if b'{"error":' in answer else "complete"

    def run(self, server: Server, what: Any, after: int) -> Counter[str]:
        async def main() -> Counter[str]:
            begun = asyncio.Semaphore(0)
            streams = [asyncio.ensure_future(self.stream(server, begun)) for _ in range(self.CLIENTS)]
            for _ in range(after):
                await begun.acquire()
            what()
            return Counter(await asyncio.gather(*streams))

        return asyncio.run(main())

    def server(self, start: StartServer, *flags: str) -> Server:
        return start("--max-num-seqs", "16", *flags, env={"PLLM_FAKE_STEP": "0.005"}).wait_ready()

    def test_the_engine_is_killed(self, start: StartServer) -> None:
        server = self.server(start)
        ends = self.run(server, server.engine.kill, after=16)
        assert set(ends) <= {"error", "503", "complete"}
        assert ends["error"] >= 1
        eventually(lambda: httpx.get(f"{server.url}/health", timeout=30).status_code == 200, 30)
        assert httpx.post(f"{server.url}/v1/completions", json={"prompt": "abc"}, timeout=30).status_code == 200
        eventually(server.is_idle)
        assert "Traceback" not in "".join(server.log)

    @pytest.mark.parametrize("grace", ["30", "0.2"])
    def test_it_is_told_to_end(self, start: StartServer, grace: str) -> None:
        server = self.server(start, "--grace", grace)
        ends = self.run(server, lambda: server.process.send_signal(signal.SIGTERM), after=16)
        assert set(ends) <= ({"complete", "503"} if grace == "30" else {"complete", "error", "503"})
        assert sum(ends.values()) == self.CLIENTS
        assert server.process.wait(30) == 0
        assert "Traceback" not in "".join(server.log)

    def test_most_clients_go_away(self, start: StartServer) -> None:
        server = self.server(start)

        async def leave(number: int) -> None:
            _, writer = await asyncio.open_connection("127.0.0.1", server.port)
            body = json.dumps({**LONG, "stream": bool(number % 2)}).encode()
            whole = HEAD + b"content-length: %d\r\n\r\n" % len(body) + body
            writer.write(whole[: len(whole) * (number % 5 + 1) // 5])  # amid the headers, the body, or all of it
            await asyncio.sleep(0.002 * (number % 40))
            if number % 3:
                writer.transport.abort()
            writer.close()

        async def main() -> str:
            begun = asyncio.Semaphore(0)
            kept = asyncio.ensure_future(self.stream(server, begun))
            await begun.acquire()
            await asyncio.gather(*(leave(number) for number in range(300)))
            return await kept

        assert asyncio.run(main()) == "complete"
        eventually(server.is_idle)
        eventually(lambda: server.gauge("num_requests_waiting") == 0)
        assert "Traceback" not in "".join(server.log)

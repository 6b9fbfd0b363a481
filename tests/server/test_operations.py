"""What an operator decides: keys, limits, TLS, sockets, prefixes, origins, logs, a file of flags."""

import argparse
import json
import socket
import ssl
import subprocess
from pathlib import Path
from typing import Any

import httpx
import pytest

from pllm.cli import main
from pllm.runtime.errors import UserInputError
from pllm.runtime.server.flags import add_flags, read_flags
from pllm.runtime.server.keys import api_keys
from pllm.runtime.server.log import LoggedRequest

from .servers import Server, StartServer, eventually
from .test_lifecycle import LONG, SLOW, raw_request, run

TRACE = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"


class TestKeys:
    def test_several_from_everywhere(self, start: StartServer, tmp_path: Path) -> None:
        (tmp_path / "keys").write_text("# ours\none\n\n  two  \n")
        server = start("--api-key", "three", "four", "--api-key-file", str(tmp_path / "keys")).wait_ready()
        with server.client() as client:

            def status(key: str) -> int:
                return client.get("/v1/models", headers={"authorization": f"Bearer {key}"}).status_code

            assert [status(key) for key in ("one", "two", "three", "four")] == [200] * 4
            assert [status(key) for key in ("# ours", "five", "onetwo")] == [401] * 3

    def test_the_environment_counts_where_nothing_else_is_given(self) -> None:
        environment = {"PLLM_API_KEY": "a b\na"}
        assert api_keys([], None, environment) == ("a", "b")
        assert api_keys(["c"], None, environment) == ("c",)
        assert api_keys([], None, {}) == ()

    @pytest.mark.parametrize("text", ["", "# nothing\n", None, "two words"])
    def test_a_file_that_would_leave_the_server_open_is_refused(self, text: str | None, tmp_path: Path) -> None:
        path = tmp_path / "keys"
        if text is not None:
            path.write_text(text)
        with pytest.raises(UserInputError):
            api_keys([], str(path), {"PLLM_API_KEY": "a"})

    def test_an_empty_key_is_refused(self, artifact: Path) -> None:
        result = run(artifact, "--port", "0", "--api-key", "")
        assert (result.returncode, b"cannot be empty" in result.stderr) == (2, True)


class TestRequestTimeout:
    @pytest.fixture
    def server(self, start: StartServer) -> Server:
        return start("--request-timeout", "1", "--max-num-seqs", "1", env=SLOW).wait_ready()

    def test_an_answer_that_takes_too_long(self, server: Server) -> None:
        with server.client() as client:
            answer = client.post("/v1/completions", json=LONG)
            error = answer.json()["error"]
            assert (answer.status_code, error["code"], error["param"]) == (400, "request_timeout", "max_tokens")
            streamed = client.post("/v1/completions", json={**LONG, "stream": True}).text
            assert streamed.startswith('data: {"id"')
            assert '"code":"request_timeout"' in streamed
            assert streamed.endswith("data: [DONE]\n\n")
            eventually(server.is_idle)
            assert client.post("/v1/completions", json={**LONG, "max_tokens": 3}).status_code == 200

    def test_one_that_never_began_may_be_tried_again(self, server: Server) -> None:
        hanging = raw_request(server, {**LONG, "seed": 9002})
        eventually(lambda: server.gauge("num_requests_running") == 1)
        with server.client() as client:
            answer = client.post("/v1/completions", json={**LONG, "prompt": "w"})
        assert (answer.status_code, answer.json()["error"]["type"]) == (503, "server_error")
        assert 1 <= int(answer.headers["retry-after"]) <= 120
        assert hanging.recv(65536).startswith(b"HTTP/1.1 400 ")
        hanging.close()


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A certificate for 127.0.0.1 that signs itself, and its key."""
    folder = tmp_path_factory.mktemp("tls")
    cert, key = folder / "cert.pem", folder / "key.pem"
    names = ["-subj", "/CN=localhost", "-addext", "subjectAltName=IP:127.0.0.1"]
    kind = ["-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2"]
    files = ["-keyout", str(key), "-out", str(cert)]
    subprocess.run(["openssl", "req", *kind, *files, *names], check=True, capture_output=True)
    return cert, key


class TestTls:
    def test_https(self, start: StartServer, certificate: tuple[Path, Path]) -> None:
        cert, key = map(str, certificate)
        server = start("--ssl-certfile", cert, "--ssl-keyfile", key).wait_ready()
        assert server.announced.startswith("https://127.0.0.1:")
        trust = ssl.create_default_context(cafile=cert)
        with httpx.Client(base_url=f"https://127.0.0.1:{server.port}", verify=trust, timeout=30) as client:
            assert client.get("/health").status_code == 200
            answer = client.post("/v1/completions", json={"prompt": "abc", "stream": True})
            assert answer.text.endswith("data: [DONE]\n\n")
            with socket.create_connection(("127.0.0.1", server.port), timeout=20) as plain:
                plain.sendall(b"GET /health HTTP/1.1\r\nhost: x\r\n\r\n")
                assert not plain.recv(100).startswith(b"HTTP/1.1 200")
            raw = socket.create_connection(("127.0.0.1", server.port), timeout=20)
            with trust.wrap_socket(raw, server_hostname="127.0.0.1") as wrapped:
                wrapped.sendall(b"\x00\x01\r\n\r\n")
                assert wrapped.recv(4096).startswith(b"HTTP/1.1 400 ")
            assert client.get("/health").status_code == 200
        assert server.stop() == 0

    def test_certificates_that_cannot_be_used(self, artifact: Path, certificate: tuple[Path, Path]) -> None:
        cert, key = map(str, certificate)
        for flags in (
            ["--ssl-certfile", "/nowhere.pem"],
            ["--ssl-certfile", key],
            ["--ssl-certfile", cert],
            ["--ssl-keyfile", key],
        ):
            result = run(artifact, "--port", "0", *flags)
            assert result.returncode == 2, flags
            assert b"--ssl-" in result.stderr
            assert b"Traceback" not in result.stderr


class TestUnixSocket:
    def test_serves_and_leaves_nothing(self, start: StartServer, artifact: Path, tmp_path: Path) -> None:
        path = tmp_path / "pllm.sock"
        server = start("--uds", str(path)).wait_ready()
        assert server.announced == f"http+unix://{path}"
        with httpx.Client(transport=httpx.HTTPTransport(uds=str(path)), base_url="http://pllm", timeout=30) as client:
            assert client.post("/v1/completions", json={"prompt": "abc"}).json()["choices"][0]["text"] == "abc"
        second = run(artifact, "--uds", str(path))
        assert (second.returncode, b"another server listens there" in second.stderr) == (2, True)
        assert server.stop() == 0
        assert not path.exists()

    def test_a_stale_socket_is_replaced_and_a_file_is_not(
        self, start: StartServer, artifact: Path, tmp_path: Path
    ) -> None:
        path = tmp_path / "pllm.sock"
        with socket.socket(socket.AF_UNIX) as dead:
            dead.bind(str(path))
        start("--uds", str(path)).wait_ready()
        file = tmp_path / "file"
        file.write_text("mine")
        result = run(artifact, "--uds", str(file))
        assert (result.returncode, file.read_text()) == (2, "mine")


def test_root_path(start: StartServer) -> None:
    server = start("--root-path", "/llm/", "--api-key", "k").wait_ready()
    with server.client() as client:
        key = {"authorization": "Bearer k"}
        for path in ("/llm/v1/models", "/v1/models"):
            assert client.get(path, headers=key).status_code == 200
            assert client.get(path).status_code == 401
        assert client.get("/llm/health").status_code == 200
        for path in ("/llm/%68ealth", "/%6clm/health", "/llmhealth", "/llm//health", "/other/health"):
            assert client.get(path).status_code == 401, path
        assert client.get("/llm/openapi.json", headers=key).json()["servers"] == [{"url": "/llm"}]


class TestCors:
    def test_an_origin_that_may_ask(self, start: StartServer) -> None:
        server = start("--cors", "https://chat.example", "--api-key", "k").wait_ready()
        with server.client() as client:
            asks = {"access-control-request-method": "POST", "access-control-request-headers": "authorization"}
            origin = {"origin": "https://chat.example"}
            answer = client.options("/v1/chat/completions", headers=origin | asks)
            assert (answer.status_code, answer.content) == (204, b"")
            assert answer.headers["access-control-allow-origin"] == "https://chat.example"
            assert answer.headers["access-control-allow-headers"] == "authorization"
            answer = client.get("/v1/models", headers=origin)
            assert (answer.status_code, answer.headers["access-control-allow-origin"]) == (401, "https://chat.example")
            assert answer.headers["vary"] == "origin"
            other = client.options("/v1/chat/completions", headers={"origin": "https://evil.example"} | asks)
            assert other.status_code == 401
            assert "access-control-allow-origin" not in other.headers

    def test_all_and_none(self, start: StartServer, client: httpx.Client) -> None:
        answer = client.get("/health", headers={"origin": "https://a.example"})
        assert "access-control-allow-origin" not in answer.headers
        server = start("--cors", "*").wait_ready()
        with server.client() as other:
            answer = other.get("/health", headers={"origin": "https://a.example"})
            assert answer.headers["access-control-allow-origin"] == "*"


class TestLog:
    def lines(self, server: Server) -> list[dict[str, Any]]:
        assert server.stop() == 0
        return [json.loads(line) for line in server.log if line.startswith("{")]

    def test_a_line_a_request_in_json(self, start: StartServer) -> None:
        server = start("--log-format", "json", "--log-requests", "--api-key", "k-secret").wait_ready()
        headers = {"authorization": "Bearer k-secret", "x-request-id": "mine-1", "traceparent": TRACE}
        with server.client(headers=headers) as client:
            client.post("/v1/completions?q=private", json={"prompt": "private", "seed": 9003})
            client.get("/private")
            client.get("/v1/models/private")
            client.get("/health", headers={"authorization": "Bearer private"})
        lines = [line for line in self.lines(server) if line["message"] == "request"]
        assert [(line["method"], line.get("route"), line["status"]) for line in lines] == [
            ("POST", "/v1/completions", 500),
            ("GET", None, 404),
            ("GET", "/v1/models/{name:path}", 404),
            ("GET", "/health", 200),
        ]
        for line in lines:
            assert line["request_id"] == "mine-1"
            assert line["trace_id"] == "4bf92f3577b34da6a3ce929d0e0e4736"
            assert line["span_id"] == "00f067aa0ba902b7"
            assert line["seconds"] >= 0
            assert line["time"].endswith("Z")
        log = "".join(server.log)
        assert "private" not in log
        assert "k-secret" not in log

    def test_other_lines_name_their_request(self, start: StartServer) -> None:
        server = start("--log-format", "json").wait_ready()
        with server.client(headers={"x-request-id": "mine-2"}) as client:
            client.post("/v1/completions", json={"prompt": "x", "temprature": 1})
        (line,) = [line for line in self.lines(server) if "temprature" in line["message"]]
        assert (line["request_id"], line["level"]) == ("mine-2", "warning")
        assert not any(line["message"] == "request" for line in self.lines_of(server))

    def test_what_the_engine_has_to_say_when_it_opens(self, start: StartServer) -> None:
        messages = [line["message"] for line in self.lines(start("--log-format", "json").wait_ready())]
        assert messages.count("this is a parrot") == 1

    def lines_of(self, server: Server) -> list[dict[str, Any]]:
        return [json.loads(line) for line in server.log if line.startswith("{")]

    def test_text(self, start: StartServer) -> None:
        server = start("--log-requests").wait_ready()
        with server.client(headers={"x-request-id": "mine-3"}) as client:
            client.get("/health")
        assert server.stop() == 0
        assert any("[request_id=mine-3 method=GET route=/health status=200" in line for line in server.log)

    @pytest.mark.parametrize(
        "given",
        [
            b"",
            b"00-0-0-01",
            b"ff" + TRACE[2:].encode(),
            b"00-" + b"0" * 32 + b"-00f067aa0ba902b7-01",
            TRACE.upper().encode(),
            TRACE.encode() + b"x",
            b"\xff" * 55,
        ],
    )
    def test_what_is_no_trace(self, given: bytes) -> None:
        assert LoggedRequest.of(b"r", given) == LoggedRequest("r")


class TestConfig:
    def read(self, tmp_path: Path, text: str, *words: str) -> argparse.Namespace:
        path = tmp_path / "pllm.toml"
        path.write_text(text)
        parser = argparse.ArgumentParser()
        add_flags(parser)
        return read_flags(parser, ["--config", str(path), *words])

    def test_the_command_line_over_the_file_over_the_defaults(self, tmp_path: Path) -> None:
        text = 'model = "m"\nport = 9000\nmax-queue = 7\ngrace = 1.5\nno_prefix_caching = true\napi-key = ["a"]\n'
        args = self.read(tmp_path, text, "--port", "8000", "--api-key", "b")
        assert (args.model, args.port, args.max_queue, args.grace) == ("m", 8000, 7, 1.5)
        assert (args.no_prefix_caching, args.host, args.api_key) == (True, "127.0.0.1", ["a", "b"])
        assert self.read(tmp_path, text, "other").model == "other"

    @pytest.mark.parametrize(
        ("text", "said"),
        [
            ("port = 1\nprot = 2\nmax-que = 3\n", "prot: no such flag; did you mean port?; max-que: no such flag"),
            ("port = 70000\n", "port: must be a whole number from 0 to 65535"),
            ("port = [1]\n", "port: must be a string or a number"),
            ("log-format = 'xml'\n", "log-format: must be one of text, json"),
            ("no-prefix-caching = 1\n", "no-prefix-caching: must be true or false"),
            ("port =\n", "line 1"),
        ],
    )
    def test_mistakes(self, text: str, said: str, tmp_path: Path) -> None:
        with pytest.raises(UserInputError) as caught:
            self.read(tmp_path, text, "m")
        assert said in caught.value.message
        assert "pllm.toml" in caught.value.message

    def test_every_flag_can_stand_in_the_file(self, tmp_path: Path) -> None:
        parser = argparse.ArgumentParser()
        add_flags(parser)
        lines = []
        for action in parser._actions:
            if action.dest in ("help", "config"):
                continue
            value = "true" if action.nargs == 0 else json.dumps(action.choices[-1]) if action.choices else '"/1"'
            if action.nargs != 0 and action.type is not None and action.dest != "root_path":
                value = "1"
            lines.append(f"{action.dest.replace('_', '-')} = {value}")
        args = self.read(tmp_path, "\n".join(lines))
        assert args.log_format == "json"
        assert (args.model, args.root_path, args.served_model_name) == ("/1", "/1", ["/1"])
        assert (args.port, args.max_body, args.request_timeout) == (1, 1, 1.0)

    def test_served_from_a_file(self, start: StartServer, tmp_path: Path) -> None:
        path = tmp_path / "pllm.toml"
        path.write_text('served-model-name = ["mine"]\nunknown-fields = "refuse"\n')
        with start("--config", str(path)).wait_ready().client() as client:
            assert client.get("/v1/models").json()["data"][0]["id"] == "mine"
            assert client.post("/v1/completions", json={"prompt": "a", "b": 1}).status_code == 400

    def test_a_mistake_is_the_user_s(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        assert main(["run", "--config", str(tmp_path / "none.toml")]) == 2
        assert "none.toml" in capsys.readouterr().err
        with pytest.raises(SystemExit) as ended:
            main(["run"])
        assert ended.value.code == 2
        assert "say what to serve" in capsys.readouterr().err

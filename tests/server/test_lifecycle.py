"""Start, clients that go away, engines that die, overload, shutdown: real processes and signals."""

import asyncio
import json
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import httpx
import psutil
import pytest

from pllm.runtime import build_cache

from .servers import HERE, Server, StartServer, environment, eventually, running_server

SLOW = {"PLLM_FAKE_STEP": "0.05"}
LONG = {"prompt": "abc", "max_tokens": 400, "ignore_eos": True}


def run(artifact: Path, *flags: str, env: dict[str, str] | None = None) -> subprocess.CompletedProcess[bytes]:
    command = [sys.executable, str(HERE / "run_server.py"), str(artifact), *flags]
    return subprocess.run(command, capture_output=True, timeout=60, check=False, env=environment(env))


def raw_request(server: Server, body: dict[str, object]) -> socket.socket:
    """A connection that has sent a completion request and reads nothing yet."""
    text = json.dumps(body).encode()
    connection = socket.create_connection(("127.0.0.1", server.port), timeout=30)
    connection.sendall(
        b"POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
        + f"content-length: {len(text)}\r\n\r\n".encode()
        + text
    )
    return connection


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return int(probe.getsockname()[1])


def answers(port: int, status: int) -> bool:
    """Whether somebody listens there whose health is this."""
    try:
        return httpx.get(f"http://127.0.0.1:{port}/health", timeout=30).status_code == status
    except httpx.ConnectError:
        return False


class TestStart:
    def test_a_port_in_use(self, artifact: Path) -> None:
        with socket.create_server(("127.0.0.1", 0)) as other:
            port = other.getsockname()[1]
            # The engine would fail to open: the port is looked at first.
            result = run(artifact, "--port", str(port), env={"PLLM_FAKE_OPEN_ERROR": "ArtifactError"})
        assert result.returncode == 2
        assert f"port {port} is in use" in result.stderr.decode()
        assert "Traceback" not in result.stderr.decode()

    @pytest.mark.parametrize("flags", [("--host", "nowhere.invalid"), ("--host", "203.0.113.1"), ("--port", "70000")])
    def test_an_address_that_cannot_be(self, artifact: Path, flags: tuple[str, str]) -> None:
        result = run(artifact, *flags)
        assert result.returncode == 2
        assert "Traceback" not in result.stderr.decode()

    @pytest.mark.parametrize(
        ("error", "code"), [("ArtifactDamagedError", 4), ("DoesNotFitError", 4), ("BuildError", 1)]
    )
    def test_an_artifact_that_cannot_be_opened(self, artifact: Path, error: str, code: int) -> None:
        result = run(artifact, "--port", "0", env={"PLLM_FAKE_OPEN_ERROR": error})
        assert result.returncode == code
        assert "this artifact cannot be opened: build it again" in result.stderr.decode()
        assert "Traceback" not in result.stderr.decode()

    def test_a_tokenizer_that_cannot_be_read(self, tmp_path: Path) -> None:
        (tmp_path / "manifest.json").write_text("{}")
        result = run(tmp_path, "--port", "0")
        assert result.returncode == 4
        assert "tokenizer.json" in result.stderr.decode()
        assert "Traceback" not in result.stderr.decode()

    def test_what_is_no_model(self, tmp_path: Path) -> None:
        result = run(tmp_path / "nothing", "--port", "0")
        assert result.returncode == 2
        assert "is no model" in result.stderr.decode()
        assert "Traceback" not in result.stderr.decode()

    def test_a_recipe_that_was_built_is_served_from_the_cache(
        self, artifact: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def build(command: list[str]) -> int:
            shutil.copytree(artifact, command[command.index("--output") + 1])
            return 0

        recipe = tmp_path / "mine.toml"
        recipe.write_text('[model]\nsource = "./checkpoint"\n')
        monkeypatch.setenv("PLLM_CACHE", str(tmp_path / "cache"))
        monkeypatch.setattr(build_cache, "run_build", build)
        build_cache.BuildCache().obtain(str(recipe))
        with running_server(recipe) as server, server.wait_ready().client() as client:
            assert client.post("/v1/completions", json={"prompt": "abc"}).json()["choices"][0]["text"] == "abc"

    def test_a_recipe_that_cannot_be_built(self, tmp_path: Path) -> None:
        recipe = tmp_path / "mine.toml"
        recipe.write_text("[model\n")
        result = run(recipe, "--port", "0", env={"PLLM_CACHE": str(tmp_path / "cache")})
        said = result.stderr.decode()
        assert result.returncode == 2
        assert "mine.toml:1:7" in said
        assert "could not be built" in said.splitlines()[-1]
        assert "Traceback" not in said

    def test_a_stop_while_a_recipe_is_built_ends_the_build(self, tmp_path: Path) -> None:
        recipe = Path(__file__).parents[2] / "recipes" / "quickstart.toml"
        with running_server(recipe, env={"PLLM_CACHE": str(tmp_path / "cache")}) as server:
            process = psutil.Process(server.process.pid)
            eventually(lambda: any(".quickstart-" in path.name for path in tmp_path.glob("cache/artifacts/*")), 60)
            builds = process.children(recursive=True)
            assert any("build" in child.cmdline() for child in builds)
            assert server.stop() == 128 + signal.SIGTERM
            assert not any(child.is_running() for child in builds)
        assert not list(tmp_path.glob("cache/artifacts/*/"))

    def test_not_ready_before_the_engine_is(self, artifact: Path, start: StartServer) -> None:
        server = start("--port", str(port := free_port()), env={"PLLM_FAKE_OPEN": "2"})
        eventually(lambda: answers(port, 503))
        server.port = port
        with server.client() as client:
            answer = client.post("/v1/completions", json=LONG)
            assert answer.status_code == 503
            assert "starting" in answer.json()["error"]["message"]
            assert 1 <= int(answer.headers["retry-after"]) <= 120
            assert client.get("/metrics").status_code == 200
            server.wait_ready()
            assert client.get("/health").status_code == 200

    @pytest.mark.parametrize(("flags", "warns"), [((), True), (("--api-key", "secret"), False)])
    def test_a_wide_bind_without_a_key_warns(self, artifact: Path, flags: tuple[str, ...], warns: bool) -> None:
        env = {"PLLM_FAKE_OPEN_ERROR": "ArtifactError"}
        log = run(artifact, "--host", "0.0.0.0", "--port", "0", *flags, env=env).stderr.decode()
        assert ("WITHOUT A KEY" in log) is warns
        assert "secret" not in log

    def test_names(self, start: StartServer) -> None:
        with start("--served-model-name", "a", "b/c").wait_ready().client() as client:
            names = [card["id"] for card in client.get("/v1/models").json()["data"]]
            assert names == ["a", "b/c", "parrot", "tests/parrot"]
            answer = client.post("/v1/completions", json={"prompt": "x", "model": "b/c"}).json()
            assert answer["model"] == "b/c"

    def test_a_template_of_the_operator(self, start: StartServer, tmp_path: Path) -> None:
        template = tmp_path / "template.jinja"
        template.write_text("{% for m in messages %}{{ m.content | upper }}{% endfor %}")
        with start("--chat-template", str(template)).wait_ready().client() as client:
            answer = client.post("/v1/chat/completions", json={"messages": [{"role": "user", "content": "abc"}]})
            assert answer.json()["choices"][0]["message"]["content"] == "ABC"


class TestClientsThatGoAway:
    @pytest.fixture
    def slow(self, start: StartServer) -> Server:
        return start("--max-num-seqs", "2", env=SLOW).wait_ready()

    @pytest.mark.parametrize("stream", [True, False])
    def test_while_tokens_are_made(self, slow: Server, stream: bool) -> None:
        connection = raw_request(slow, {**LONG, "stream": stream})
        eventually(lambda: slow.gauge("num_requests_running") == 1)
        if stream:
            assert b"200 OK" in connection.recv(65536)
        connection.close()
        eventually(slow.is_idle)
        assert 'finished_reason="abort",model_name="parrot"} 1.0' in httpx.get(f"{slow.url}/metrics").text

    def test_while_waiting(self, slow: Server) -> None:
        running = [raw_request(slow, LONG) for _ in range(2)]
        eventually(lambda: slow.gauge("num_requests_running") == 2)
        waiting = raw_request(slow, LONG)
        eventually(lambda: slow.gauge("num_requests_waiting") == 1)
        waiting.close()
        eventually(lambda: slow.gauge("num_requests_waiting") == 0)
        assert slow.gauge("num_requests_running") == 2
        for connection in running:
            connection.close()
        eventually(slow.is_idle)

    def test_neighbours_are_not_disturbed(self, slow: Server) -> None:
        gone = raw_request(slow, {**LONG, "stream": True})
        eventually(lambda: slow.gauge("num_requests_running") == 1)
        with (
            slow.client() as client,
            client.stream("POST", "/v1/completions", json={**LONG, "max_tokens": 30, "stream": True}) as answer,
        ):
            lines = answer.iter_lines()
            texts = [next(lines)]
            gone.close()
            texts += lines
        chunks = [json.loads(line[6:]) for line in texts if line.startswith("data: {")]
        assert "".join(chunk["choices"][0]["text"] for chunk in chunks) == "abc" * 10
        eventually(slow.is_idle)

    def test_several_prompts_and_answers(self, slow: Server) -> None:
        connection = raw_request(slow, {**LONG, "prompt": ["abc", "def", "ghi"], "n": 2})
        eventually(lambda: slow.gauge("num_requests_running") == 2)
        connection.close()
        eventually(slow.is_idle)
        assert slow.gauge("num_requests_waiting") == 0

    def test_while_the_body_is_still_coming(self, slow: Server) -> None:
        connection = socket.create_connection(("127.0.0.1", slow.port))
        connection.sendall(b"POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-length: 1000\r\n\r\n{")
        connection.close()
        assert slow.is_idle()

    def test_one_that_never_reads(self, start: StartServer) -> None:
        server = start("--client-timeout", "0.5").wait_ready()
        # Big answers into small buffers: log-probabilities of several answers, so that the socket fills up.
        connection = socket.socket()
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.connect(("127.0.0.1", server.port))
        body = {**LONG, "max_tokens": 500, "n": 8, "logprobs": 3, "stream": True, "stop": "never" * 200}
        text = json.dumps({**body, "prompt": ["abc"] * 40}).encode()
        head = (
            b"POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n"
        )
        connection.sendall(head % len(text) + text)
        eventually(lambda: server.gauge("num_requests_running") > 0)
        eventually(server.is_idle, 30)
        assert 'finished_reason="abort"' in httpx.get(f"{server.url}/metrics").text
        connection.close()


class TestEngineDeath:
    def fails_and_recovers(self, server: Server, kill: object) -> None:
        with server.client() as client:
            with client.stream("POST", "/v1/completions", json={**LONG, "stream": True}) as answer:
                lines = answer.iter_lines()
                assert next(lines).startswith("data: {")
                before = server.engine.pid
                kill(server)  # type: ignore[operator]
                rest = [line for line in lines if line]
            error = json.loads(rest[-2].removeprefix("data: "))["error"]
            assert error["type"] == "server_error"
            assert "engine" in error["message"]
            assert rest[-1] == "data: [DONE]"
            eventually(lambda: client.get("/health").status_code == 200, 30)
            assert client.post("/v1/completions", json={"prompt": "abc"}).json()["choices"][0]["text"] == "abc"
            assert server.engine.pid != before
            assert not psutil.pid_exists(before)

    def test_killed(self, start: StartServer) -> None:
        self.fails_and_recovers(start(env=SLOW).wait_ready(), lambda server: server.engine.kill())

    def test_stopped(self, start: StartServer) -> None:
        self.fails_and_recovers(start(env=SLOW).wait_ready(), lambda server: server.engine.suspend())

    @pytest.mark.parametrize("seed", [9001, 9004])
    def test_raising_or_exiting(self, start: StartServer, seed: int) -> None:
        def kill(server: Server) -> None:
            answer = httpx.post(f"{server.url}/v1/completions", json={"prompt": "abcdef", "seed": seed}, timeout=30)
            assert answer.status_code == 503
            assert answer.json()["error"]["type"] == "server_error"

        self.fails_and_recovers(start(env=SLOW).wait_ready(), kill)

    def test_hanging(self, start: StartServer) -> None:
        server = start("--step-timeout", "1", env=SLOW).wait_ready()
        answer = httpx.post(f"{server.url}/v1/completions", json={"prompt": "abcdef", "seed": 9002}, timeout=60)
        assert answer.status_code == 503
        assert "no step finished" in answer.json()["error"]["message"]
        eventually(lambda: httpx.get(f"{server.url}/health").status_code == 200, 30)

    def test_given_up(self, start: StartServer) -> None:
        server = start("--max-restarts", "1").wait_ready()
        server.kill_engine()
        server.engine.kill()
        assert server.process.wait(30) == 1
        assert "given up" in "".join(server.log)

    def test_health_says_so_meanwhile(self, start: StartServer) -> None:
        server = start(env={"PLLM_FAKE_OPEN": "1"}).wait_ready()
        server.engine.kill()
        eventually(lambda: httpx.get(f"{server.url}/health").status_code == 503)
        answer = httpx.post(f"{server.url}/v1/completions", json=LONG)
        assert answer.status_code == 503
        eventually(lambda: httpx.get(f"{server.url}/health").status_code == 200, 30)

    def test_the_engine_does_not_outlive_its_server(self, start: StartServer) -> None:
        for env in ({}, SLOW):
            server = start(env=env).wait_ready()
            connection = raw_request(server, LONG)
            engine = server.engine
            server.process.kill()
            eventually(lambda engine=engine: not engine.is_running() or engine.status() == psutil.STATUS_ZOMBIE)  # type: ignore[misc]
            connection.close()


class TestOverload:
    def test_a_bounded_queue(self, start: StartServer) -> None:
        server = start("--max-num-seqs", "2", "--max-queue", "1", env=SLOW).wait_ready()
        connections = [raw_request(server, LONG) for _ in range(3)]
        eventually(lambda: server.gauge("num_requests_running") == 2 and server.gauge("num_requests_waiting") == 1)
        with server.client() as client:
            answer = client.post("/v1/completions", json=LONG)
            assert answer.status_code == 429
            assert answer.json()["error"]["type"] == "rate_limit_error"
            assert 1 <= int(answer.headers["retry-after"]) <= 120
            answer = client.post("/v1/completions", json={**LONG, "prompt": ["a"] * 4})
            assert answer.status_code == 429
            for connection in connections:
                connection.close()
            eventually(server.is_idle)
            answer = client.post("/v1/completions", json={**LONG, "prompt": ["a"] * 4})
            assert (answer.status_code, answer.json()["error"]["param"]) == (400, "prompt")
            assert client.post("/v1/completions", json={"prompt": ["a"] * 3}).status_code == 200

    def test_two_thousand_at_once(self, start: StartServer) -> None:
        server = start("--max-queue", "64", env={"PLLM_FAKE_STEP": "0.001"}).wait_ready()
        body = json.dumps({"prompt": "abc"}).encode()
        request = (
            b"POST /v1/completions HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-type: application/json\r\n"
            + f"content-length: {len(body)}\r\n\r\n".encode()
            + body
        )

        async def one() -> bytes:
            reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
            writer.write(request)
            answer = await reader.read()
            writer.close()
            return answer[9:12]

        async def all_of_them() -> Counter[bytes]:
            return Counter(await asyncio.gather(*(one() for _ in range(2000))))

        statuses = asyncio.run(all_of_them())
        assert set(statuses) <= {b"200", b"429", b"503"}
        assert statuses[b"200"] >= 64
        assert sum(statuses.values()) == 2000
        eventually(server.is_idle)


class TestShutdown:
    def test_idle(self, start: StartServer) -> None:
        server = start().wait_ready()
        engine = server.engine
        assert server.stop() == 0
        assert not engine.is_running()

    def test_running_requests_finish(self, start: StartServer) -> None:
        server = start(env=SLOW).wait_ready()
        with server.client() as client, server.client() as other:
            with client.stream("POST", "/v1/completions", json={**LONG, "max_tokens": 30, "stream": True}) as answer:
                lines = answer.iter_lines()
                first = next(lines)
                server.process.send_signal(signal.SIGTERM)
                eventually(lambda: other.get("/health").status_code == 503)
                refused = other.post("/v1/completions", json=LONG)
                assert refused.status_code == 503
                assert "shutting down" in refused.json()["error"]["message"]
                rest = list(lines)
            chunks = [json.loads(line[6:]) for line in [first, *rest] if line.startswith("data: {")]
            assert "".join(chunk["choices"][0]["text"] for chunk in chunks) == "abc" * 10
            assert "data: [DONE]" in rest
        assert server.process.wait(30) == 0

    def test_the_grace_time_ends(self, start: StartServer) -> None:
        server = start("--grace", "0.3", env=SLOW).wait_ready()
        with (
            server.client() as client,
            client.stream("POST", "/v1/completions", json={**LONG, "stream": True}) as answer,
        ):
            lines = answer.iter_lines()
            next(lines)
            server.process.send_signal(signal.SIGTERM)
            rest = [line for line in lines if line]
        assert "shutting down" in json.loads(rest[-2].removeprefix("data: "))["error"]["message"]
        assert server.process.wait(30) == 0

    def test_a_second_signal_ends_now(self, start: StartServer) -> None:
        server = start("--grace", "600", env=SLOW).wait_ready()
        connection = raw_request(server, LONG)
        eventually(lambda: server.gauge("num_requests_running") == 1)
        engine = server.engine
        server.process.send_signal(signal.SIGINT)
        eventually(lambda: httpx.get(f"{server.url}/health").status_code == 503)
        server.process.send_signal(signal.SIGINT)
        assert server.process.wait(30) == 1
        assert not engine.is_running()
        connection.close()

    def test_signals_to_the_whole_group(self, start: StartServer) -> None:
        server = start(env=SLOW).wait_ready()
        engine = server.engine
        engine.send_signal(signal.SIGINT)
        engine.send_signal(signal.SIGTERM)
        time.sleep(0.1)
        assert httpx.post(f"{server.url}/v1/completions", json={"prompt": "abc"}, timeout=30).status_code == 200
        assert server.engine.pid == engine.pid

    def test_during_the_start(self, start: StartServer) -> None:
        port = free_port()
        server = start("--port", str(port), env={"PLLM_FAKE_OPEN": "60"})
        eventually(lambda: answers(port, 503))
        assert server.stop() == 0


def test_no_prompt_and_no_key_in_the_log(start: StartServer) -> None:
    server = start("--api-key", "the-secret-key").wait_ready()
    headers = {"authorization": "Bearer the-secret-key"}
    with server.client(headers=headers) as client:
        client.post("/v1/completions", json={"prompt": "the-private-prompt", "the-private-prompt-": 1})
        client.post("/v1/completions", json={"prompt": "the-private-prompt", "seed": 9003})
        client.post("/v1/completions", json={"prompt": "the-private-prompt", "seed": 9001})
        client.post("/v1/completions", content=b"the-private-prompt")
        client.get("/the-private-prompt")
    assert server.stop() == 0
    log = "".join(server.log).replace("'the-private-prompt-'", "")
    assert "the-private-prompt" not in log
    assert "the-secret-key" not in log

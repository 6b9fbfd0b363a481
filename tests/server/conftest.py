"""Servers and clients for the tests beside this file."""

import json
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import httpx
import pytest

from .servers import TEMPLATE, Server, StartServer, byte_tokenizer, running_server


@pytest.fixture(scope="session")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the API process reads of an artifact; the fake engine reads nothing."""
    folder = tmp_path_factory.mktemp("artifact")
    (folder / "tokenizer").mkdir()
    byte_tokenizer().save(str(folder / "tokenizer" / "tokenizer.json"))
    config = {"eos_token": "<|im_end|>", "chat_template": TEMPLATE}
    (folder / "tokenizer" / "tokenizer_config.json").write_text(json.dumps(config))
    (folder / "generation.json").write_text(json.dumps({"eos_token_id": [258]}))
    (folder / "manifest.json").write_text("{}")
    (folder / "grammars").mkdir()
    (folder / "grammars" / "answer.json").write_text('{"enum": [12, 13]}')
    (folder / "grammars" / "pin.gbnf").write_text('root ::= "#" [0-9]{3}')
    return folder


@pytest.fixture
def start(artifact: Path) -> Iterator[StartServer]:
    """Starts servers of the test's own: ``start("--flag", env={...})``."""
    with ExitStack() as stack:
        yield lambda *flags, env=None: stack.enter_context(running_server(artifact, *flags, env=env))


@pytest.fixture(scope="session")
def server(artifact: Path) -> Iterator[Server]:
    """A server that tests share: they leave it running and idle. Steps take 2 ms."""
    with running_server(artifact, env={"PLLM_FAKE_STEP": "0.002"}) as server:
        yield server.wait_ready()


@pytest.fixture
def client(server: Server) -> Iterator[httpx.Client]:
    with server.client() as client:
        yield client

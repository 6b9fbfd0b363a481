"""``pllm bench serve`` against a real server whose model is a function."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from pllm.cli import main

from .servers import Server, eventually

pytestmark = pytest.mark.usefixtures("no_key")


@pytest.fixture
def no_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PLLM_API_KEY", raising=False)


def test_a_running_server_is_measured(server: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    target = tmp_path / "serve.json"
    load = ["--num-requests", "12", "--input-len", "40", "--output-len", "9", "--concurrency", "4"]
    flags = ["--vocab-size", "256", "--request-rate", "500", "--goodput", "ttft:60000", "--json", str(target)]
    assert main(["bench", "serve", "--url", server.url, *load, *flags]) == 0
    shown = capsys.readouterr().out
    for word in ("TTFT", "TPOT", "ITL", "p50", "p90", "p99", "12 requests succeeded", "goodput (ttft within 60000 ms)"):
        assert word in shown
    document = json.loads(target.read_text())
    results = document["results"]
    assert (document["measurement"], results["succeeded"], results["failed"]) == ("serve", 12, 0)
    assert results["ttft"]["count"] == results["tpot"]["count"] == results["e2el"]["count"] == 12
    assert results["goodput_per_s"] == results["requests_per_s"]
    assert document["options"]["request_rate"] == 500
    eventually(server.is_idle)


def test_every_token_is_a_chunk_also_where_it_makes_no_text(server: Server) -> None:
    body = {"prompt": [0xF0, 0x9F, 0x98, 0x80], "max_tokens": 4, "ignore_eos": True, "stream": True}
    with server.client() as client:
        plain = client.post("/v1/completions", json=body).text
        counted = client.post("/v1/completions", json=body | {"stream_options": {"continuous_usage_stats": True}}).text
    chunks = [json.loads(line[6:]) for line in counted.split("\n\n") if line.startswith("data: {")]
    texts = [chunk["choices"][0]["text"] for chunk in chunks]
    assert "".join(texts) == "\N{GRINNING FACE}"
    # A server merges what comes while the socket is busy: the counts say which tokens a chunk brought.
    counts = [chunk["usage"]["completion_tokens"] for chunk in chunks]
    assert counts == sorted(set(counts))
    assert counts[-1] == 4
    assert plain.count("data: {") <= len(chunks)


def test_requests_that_are_refused_make_the_measurement_void(
    server: Server, capsys: pytest.CaptureFixture[str]
) -> None:
    # The fake's context is 512 tokens, so the warm-up passes and every request is refused.
    load = ["--num-requests", "3", "--input-len", "600", "--output-len", "4"]
    assert main(["bench", "serve", "--url", server.url, "--vocab-size", "256", *load]) == 3
    said = capsys.readouterr()
    assert "0 requests succeeded and 3 failed" in said.out
    assert "the measurement is void: 3 requests failed (3 x the server answered with 400: " in said.err
    assert "maximum context length" in said.err


def test_a_client_imports_no_torch_and_no_numpy(server: Server) -> None:
    script = (
        "import sys; from pllm.cli import main; "
        "code = main(['bench', 'serve', '--url', sys.argv[1], '--vocab-size', '256', '--num-requests', '1']); "
        "heavy = {'torch', 'numpy', 'transformers', 'triton', 'pllm.build', 'httpx'} & set(sys.modules); "
        "assert (code, heavy) == (0, set()), (code, heavy)"
    )
    environment = {name: value for name, value in os.environ.items() if name != "PLLM_API_KEY"}
    done = subprocess.run(
        [sys.executable, "-c", script, server.url], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr

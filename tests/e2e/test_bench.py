"""``pllm bench`` on the quickstart artifact: that it measures what it says, never how fast that was."""

import json
from pathlib import Path
from typing import Any

import pytest

from pllm.cli import main
from pllm.runtime.artifact import Artifact
from pllm.runtime.bench.engine_run import EngineRun
from pllm.runtime.bench.workload import Workload
from pllm.runtime.engine_core import EngineCore


@pytest.fixture
def measured(artifact: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Runs a measurement and returns its JSON document."""
    monkeypatch.delenv("PLLM_API_KEY", raising=False)

    def run(measurement: str, *flags: str) -> Any:
        target = tmp_path / f"{measurement}.json"
        assert main(["bench", measurement, str(artifact), *flags, "--json", str(target)]) == 0
        document = json.loads(target.read_text())
        assert document["machine"]["cores"] >= 1
        assert document["machine"]["versions"]["pllm"]
        return document["results"]

    return run


def test_latency(measured: Any, capsys: pytest.CaptureFixture[str]) -> None:
    results = measured("latency", "--batch", "2", "--reps", "3", "--input-len", "20", "--output-len", "5")
    assert results["ttft"]["count"] == results["tpot"]["count"] == 6
    assert results["latency"]["count"] == len(results["passes"]) == 3
    assert 0 < results["ttft"]["p50"] < results["latency"]["p50"]
    assert results["peak_rss"] > 50 << 20
    assert "decode" in capsys.readouterr().out


def test_throughput(measured: Any, capsys: pytest.CaptureFixture[str]) -> None:
    results = measured("throughput", "--workload", "W3", "--reps", "1")
    (only,) = results["passes"]
    assert results["output_tokens_per_s"]["p50"] == pytest.approx(1114 / only["makespan"], rel=1e-6)
    assert results["total_tokens_per_s"]["p50"] == pytest.approx((1114 + 5096) / only["makespan"], rel=1e-6)
    assert only["preemptions"] == 0
    # No time is in this: how full the blocks are is decided by the scheduler.
    assert results["kv_utilisation"]["mean"] > 0.95
    assert results["kv_utilisation"]["max"] <= 1
    assert "KV utilisation" in capsys.readouterr().out


def test_serve(measured: Any) -> None:
    results = measured("serve", "--num-requests", "6", "--concurrency", "3", "--output-len", "8")
    assert (results["succeeded"], results["failed"]) == (6, 0)
    assert results["ttft"]["p50"] <= results["e2el"]["p50"]
    assert results["peak_rss"] > results["pss"] > 0


def test_startup(measured: Any, artifact: Path) -> None:
    results = measured("startup", "--reps", "1")
    (library,), (server,) = results["library"], results["server"]
    torch = () if Artifact.read(artifact).manifest.requires.torch is None else ("torch",)
    assert list(library["stages"]) == [
        *("interpreter", "imports", "manifest", *torch, "operators", "weights", "program", "KV pool", "hashes"),
        *("tokenizer", "first token"),
    ]
    assert sum(library["stages"].values()) == pytest.approx(library["first_token"], rel=0.05)
    assert library["ready"] < library["first_token"]
    assert server["answering"] <= server["ready"] < server["first_token"]
    assert results["page_cache"] == "warm"


def test_repeats_hit_the_prefix_cache_only_when_asked(artifact: Path) -> None:
    for caching in (False, True):
        core = EngineCore.open(artifact, enable_prefix_caching=caching)
        workload = Workload.named("W1", core.manifest.model.vocab_size)
        runs = [EngineRun.of(core.engine, workload) for _ in range(2)]
        hits = core.engine.stats().prefix_cache_hits
        core.close()
        assert runs[0].token_ids == runs[1].token_ids
        assert (hits > 0) is caching

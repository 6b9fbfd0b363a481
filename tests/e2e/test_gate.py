"""``pllm gate`` on the quickstart artifact: that it measures and decides what it says, never how fast that was."""

import json
import shutil
from pathlib import Path

import pytest

from pllm.cli import main
from pllm.runtime.errors import ArtifactError, UserInputError
from pllm.runtime.gate.check import Check, Verdict
from pllm.runtime.gate.facts import facts_of
from pllm.runtime.gate.gate import GateOptions, gate, gate_certificate
from pllm.runtime.gate.quantity import tasks_for
from pllm.runtime.gate.run import GateSettings
from pllm.runtime.gate.side import Side, Worker
from pllm.runtime.gate.turns import PassTurn, StepTurn


@pytest.fixture
def copy(artifact: Path, tmp_path: Path) -> Path:
    target = tmp_path / "copy"
    shutil.copytree(artifact, target)
    return target


def test_a_worker_does_what_it_is_asked_for(artifact: Path) -> None:
    worker = Worker.start(Side("base", artifact), num_blocks=128, threads=1)
    assert worker.started < worker.opened.ready < worker.opened.first_token
    step = worker.take(StepTurn(num_seqs=2, num_tokens=2, context=64, seconds=0.01))
    assert len(step.seconds) >= 2
    assert sum(step.seconds) >= 0.01
    assert all(0 <= wait < took for took, wait in zip(step.seconds, step.waits, strict=True))
    one = worker.take(PassTurn(workload="W1"))
    assert (len(one.seconds), one.num_first) == (32, 1)
    assert worker.take(PassTurn(workload="W1")).num_first == 1
    assert worker.close().peak_rss > 50 << 20


def test_the_same_files_at_another_place_are_the_same_program(
    artifact: Path, copy: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["gate", str(artifact), str(copy)]) == 2
    assert "are the same program" in capsys.readouterr().err


def test_size_alone(artifact: Path, copy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pllm.runtime.gate.gate._counts", lambda _: {})
    targets = {kind: tmp_path / f"gate.{kind}" for kind in ("json", "markdown", "html")}
    flags = [word for kind, target in targets.items() for word in (f"--{kind}", str(target))]
    assert main(["gate", str(artifact), str(copy), "--itself", "--only", "counts", *flags]) == 0
    document = json.loads(targets["json"].read_text())
    assert document["verdict"] == "pass"
    assert document["checks"][0]["name"] == "artifact size"
    assert "pllm gate: pass" in targets["markdown"].read_text()
    assert "<h1 class='pass'>" in targets["html"].read_text()


def test_too_short_a_run_is_void(artifact: Path, tmp_path: Path) -> None:
    target = tmp_path / "gate.json"
    flags = ["--seconds", "0.1", "--quantities", "decode, 1 *", "start to ready", "--json", str(target)]
    assert main(["gate", str(artifact), str(artifact), "--itself", "--only", "timings", *flags]) == 3
    document = json.loads(target.read_text())
    assert document["verdict"] == "void"
    assert [each["name"] for each in document["timings"]] == ["decode, 1 sequence", "start to ready"]
    assert all(0 < each["base"] < 100 for each in document["timings"])


def test_every_row_of_the_certificate_is_a_quantity(artifact: Path) -> None:
    facts = facts_of(Side("base", artifact))
    names = [quantity.name for task in tasks_for(facts.rows, facts.max_model_len) for quantity in task.quantities]
    assert len(names) == len(set(names)) == len(facts.rows) + 3
    assert {"decode, 1 sequence", "prefill, 128 tokens", "TTFT, W1", "TPOT, W1", "throughput, W2"} <= set(names)


def test_who_asks_for_nothing_that_there_is(artifact: Path) -> None:
    side = Side("base", artifact)
    with pytest.raises(UserInputError, match="no quantity is called decoding: there are decode, 1 sequence"):
        gate(side, side, GateOptions(quantities=("decoding",), itself=True, only="timings"))


def test_a_side_that_is_no_artifact(artifact: Path, tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="is no artifact"):
        gate(Side("base", artifact), Side("new", tmp_path), GateOptions())


def test_against_its_own_certificate(artifact: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever this machine's speed is now, beside that of the build: the check of it has a test of its own."""
    same = Check("machine", None, None, Verdict.PASS)
    monkeypatch.setattr("pllm.runtime.gate.gate.machine_check", lambda *_: same)
    options = GateOptions(settings=GateSettings(seconds=0.1, least=2), quantities=("decode, 1 *",))
    report = gate_certificate(Side("here", artifact), options)
    facts = report.sides["certificate"]
    assert facts.calibration is not None
    assert facts.calibration > 0
    assert facts.cpu
    assert report.run is not None
    [found] = report.run.comparisons
    assert found.quantity.name == "decode, 1 sequence"
    assert 0 < found.base < 1
    assert 0 < found.new < 1

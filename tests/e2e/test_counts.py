"""What the gate must catch at once: each cost is put into a copy of the sources, and the counts tell it exactly.

The costs are added where every step passes, by a wrapper. The wrapper alone is the base.
"""

import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from pllm.cli import main
from pllm.runtime.gate.allocation_counter import build_counter, counting_environment
from pllm.runtime.gate.check import Verdict
from pllm.runtime.gate.counts import check_counts

ROOT = Path(__file__).parents[2]
WRAPPER = """

_execute, _kept = ModelRunner.execute, []
def _wrapped(self, out):
    {cost}
    return _execute(self, out)
ModelRunner.execute = _wrapped
"""
STEPS, ONE = 16, "16 steps of 1 sequence"


class Checkout:
    """A copy of what serves, to be changed."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        for name in ("runtime", "kernels"):
            shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
        shutil.copytree(ROOT / "pllm", folder / "pllm", symlinks=True, ignore=shutil.ignore_patterns("__pycache__"))

    def append(self, file: str, text: str) -> "Checkout":
        with (self.folder / file).open("a", encoding="utf-8") as source:
            source.write(text)
        return self

    def counts(self, artifact: Path, module: str, what: str, environment: dict[str, str] | None = None) -> dict:
        done = subprocess.run(
            [sys.executable, "-P", "-m", f"pllm.runtime.gate.{module}", str(artifact), what],
            env={**(environment or os.environ), "PYTHONPATH": str(self.folder)},
            capture_output=True,
            text=True,
            check=False,
            timeout=120,
        )
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)


def regressions(base: dict, new: dict) -> dict[str, str]:
    checks = check_counts(base, new)
    assert {check.name for check in checks} == base.keys() == new.keys()
    return {check.name: check.reason for check in checks if check.verdict is Verdict.REGRESSION}


def wrapped(folder: Path, cost: str) -> Checkout:
    return Checkout(folder).append("runtime/model_runner.py", WRAPPER.format(cost=cost))


def test_a_cost_a_step_is_counted_exactly(artifact: Path, tmp_path: Path) -> None:
    base = wrapped(tmp_path / "base", "pass").counts(artifact, "count_steps", "calls")

    called = wrapped(tmp_path / "called", "len(out.rows)").counts(artifact, "count_steps", "calls")
    found = regressions(base, called)
    assert found.pop(f"C calls, {ONE}") == f"+{STEPS}"
    assert len(found) == 5
    assert all(name.startswith("C calls") for name in found)

    twice = wrapped(tmp_path / "twice", "_execute(self, out); _kept.append(object())")
    found = regressions(base, twice.counts(artifact, "count_steps", "calls"))
    assert found[f"runs of a program, {ONE}"] == f"+{STEPS}"
    assert found[f"operators called from Python, {ONE}"] == f"+{base[f'operators called from Python, {ONE}']}"
    assert found[f"objects kept a step, {ONE}"] == found["objects kept a step, 16 steps of 8 sequences"] == "+1"
    assert found[f"loops shared by threads, {ONE}"] == f"+{base[f'loops shared by threads, {ONE}']:,}"
    assert "golden tokens" not in found, "a step that is run twice writes the same keys and values twice"


def test_an_allocation_a_step_is_counted_exactly(artifact: Path, tmp_path: Path) -> None:
    counter = build_counter(tmp_path)
    assert counter is not None
    environment = counting_environment(counter)
    base, more = (
        wrapped(tmp_path / name, cost).counts(artifact, "count_steps", "allocations", environment)
        for name, cost in (("base", "pass"), ("more", "[out]"))
    )
    # A list is its head, which may come from a free list, and its items: here the wrapper's alone is looked at.
    assert regressions(base, more) == dict.fromkeys(base, f"+{STEPS}")


@pytest.mark.parametrize("process", ["engine", "library", "server"])
def test_a_module_more_is_named(artifact: Path, tmp_path: Path, process: str) -> None:
    clean, changed = (Checkout(tmp_path / name) for name in ("clean", "changed"))
    changed.append("runtime/errors.py", "\nimport wave\n")
    base, new = (each.counts(artifact, "count_imports", process) for each in (clean, changed))
    found = regressions(base, new)
    assert found.pop(f"modules that pllm asks for, {process}") == "new: wave"
    assert list(found) == [f"modules in all, {process}"]


def test_a_machine_without_a_compiler_counts_the_rest(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nonexistent")
    with tempfile.TemporaryDirectory() as folder:
        assert build_counter(Path(folder)) is None


def test_verify_perf_measures_every_row_or_says_that_it_is_void(
    artifact: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code = main(["verify", "--perf", str(artifact)])
    captured = capsys.readouterr()
    if code == 3:
        assert "the machine's own speed changed" in captured.err
    else:
        assert code == 0
        rows = json.loads((artifact / "measured/latency.json").read_text(encoding="utf-8"))["rows"]
        assert captured.out.count("sequences of") == len(rows)
        assert "median ratio" in captured.out

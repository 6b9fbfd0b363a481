"""pytest-benchmark's JSON as checks."""

import json
from pathlib import Path

import pytest

from pllm.cli import main
from pllm.runtime.errors import UserInputError
from pllm.runtime.gate.benchmarks import CALIBRATION, Benchmark, check_benchmarks, read_benchmarks
from pllm.runtime.gate.check import Verdict, verdict_of
from pllm.runtime.history import entry_of


def side(seconds: float, calibration: float = 1.0, half_width: float = 0.001) -> dict[str, Benchmark]:
    return {CALIBRATION: Benchmark(calibration, half_width), "step": Benchmark(seconds, half_width)}


@pytest.mark.parametrize(
    ("base", "new", "verdict"),
    [
        (side(1.0), side(1.0), Verdict.PASS),
        (side(1.0), side(1.015), Verdict.PASS),
        (side(1.0), side(1.03), Verdict.REGRESSION),
        (side(1.0), side(0.5), Verdict.PASS),
        (side(1.0, half_width=0.02), side(1.05), Verdict.PASS),
        (side(1.0, half_width=0.02), side(1.07), Verdict.REGRESSION),
        (side(1.0), side(1.2, calibration=1.06), Verdict.VOID),
        (side(1.0), {"step": Benchmark(1.0, 0.001)}, Verdict.VOID),
        (side(1.0), {CALIBRATION: Benchmark(1.0, 0.001)}, Verdict.VOID),
    ],
)
def test_verdicts(base: dict[str, Benchmark], new: dict[str, Benchmark], verdict: Verdict) -> None:
    assert verdict_of(check_benchmarks(base, new)) is verdict


def write(path: Path, **seconds: float) -> Path:
    benchmarks = [{"name": name, "stats": {"median": each, "iqr": 0.0, "rounds": 9}} for name, each in seconds.items()]
    path.write_text(json.dumps({"benchmarks": benchmarks}), encoding="utf-8")
    return path


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    base = write(tmp_path / "base.json", test_calibration=1.0, step=1.0)
    for seconds, code in ((1.01, 0), (1.1, 5)):
        new = write(tmp_path / "new.json", test_calibration=1.0, step=seconds)
        assert main(["gate", "--benchmarks", str(base), str(new), "--json", str(tmp_path / "gate.json")]) == code
        assert "step" in capsys.readouterr().out
    new = write(tmp_path / "new.json", test_calibration=1.2, step=1.0)
    assert main(["gate", "--benchmarks", str(base), str(new)]) == 3
    assert entry_of(tmp_path / "gate.json").values["step"] == pytest.approx(1100)
    assert main(["gate", "artifact", "--benchmarks", str(base), str(new)]) == 2


def test_the_file_of_pytest_benchmark(tmp_path: Path) -> None:
    path = tmp_path / "new.json"
    stats = {"median": 2.0, "iqr": 0.5, "rounds": 100, "mean": 2.1}
    path.write_text(json.dumps({"benchmarks": [{"name": "step", "stats": stats}], "version": "5.1"}), encoding="utf-8")
    found = read_benchmarks(path)["step"]
    assert (found.median, found.half_width) == (2.0, pytest.approx(1.57 * 0.5 / 10 / 2))
    path.write_text("{}", encoding="utf-8")
    with pytest.raises(UserInputError, match="pytest-benchmark"):
        read_benchmarks(path)

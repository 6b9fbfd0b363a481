"""What a user may get wrong, and how it is said."""

import subprocess
import sys
from pathlib import Path

import pytest

from pllm.cli import main

MEASUREMENTS = ("latency", "throughput", "serve", "startup")


def refused(words: list[str]) -> int:
    """The exit code of a command line that argparse or pllm refuses."""
    try:
        return main(["bench", *words])
    except SystemExit as ended:
        assert isinstance(ended.code, int)
        return ended.code


@pytest.mark.parametrize("measurement", MEASUREMENTS)
def test_each_measurement_helps(measurement: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert refused([measurement, "--help"]) == 0
    shown = capsys.readouterr().out
    assert f"usage: pllm bench {measurement}" in shown
    assert "3 the measurement is void" in " ".join(shown.split())


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        ([], "MEASUREMENT"),
        (["speed"], "invalid choice"),
        (["latency"], "ARTIFACT"),
        (["latency", "a", "--batch", "0"], "from 1 to"),
        (["latency", "a", "--reps", "two"], "whole number"),
        (["latency", "a", "--workload", "W2"], "unrecognized"),
        (["throughput", "a", "--workload", "W4"], "invalid choice"),
        (["throughput", "a", "--workload", "W3", "--concurrency", "4"], "leave out --concurrency"),
        (["throughput", "a", "--num-requests", "1000001"], "from 1 to 100000"),
        (["serve"], "either an ARTIFACT"),
        (["serve", "a", "--url", "http://127.0.0.1:1"], "either an ARTIFACT"),
        (["serve", "--url", "http://192.0.2.1:8000"], "--allow-remote"),
        (["serve", "--url", "https://127.0.0.1"], "TLS"),
        (["serve", "a", "--request-rate", "0"], "above 0"),
        (["serve", "a", "--goodput", "itl:5"], "ttft, tpot, e2el"),
        (["startup", "a", "--only", "both"], "invalid choice"),
        (["latency", "a", "--json", "no/such/folder/x.json"], "--json"),
    ],
)
def test_a_wrong_command_line_exits_with_two(words: list[str], reason: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert refused(words) == 2
    said = capsys.readouterr().err
    assert reason in said
    assert "Traceback" not in said


@pytest.mark.parametrize("measurement", MEASUREMENTS)
def test_no_artifact_exits_with_four(measurement: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", measurement, str(tmp_path)]) == 4
    assert "is no artifact" in capsys.readouterr().err


def test_nobody_at_the_url_exits_with_one(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "serve", "--url", "http://127.0.0.1:9"]) == 1
    assert "no server answers at 127.0.0.1:9" in capsys.readouterr().err


def test_help_imports_nothing_heavy() -> None:
    script = (
        "import sys\n"
        "from pllm.cli import main\n"
        "try: main(['bench', '--help'])\n"
        "except SystemExit: pass\n"
        "heavy = {'torch', 'numpy', 'rich', 'asyncio', 'msgspec', 'pllm.runtime.engine_core'} & set(sys.modules)\n"
        "sys.exit(str(heavy) if heavy else 0)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")

"""The composite action's script, with a pllm that does as it is told."""

import os
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / ".github" / "actions" / "pllm-gate" / "gate.sh"


def run(folder: Path, code: int, **inputs: str) -> tuple[int, str, str, list[str]]:
    """The script's exit code, what it said, the summary, and the words that pllm was given."""
    pllm = folder / "pllm"
    report = folder / "report"
    lines = ["#!/bin/sh", f'printf "%s\\n" "$@" >{folder}/words', f"exit {code}"]
    if code != 2:
        lines.insert(2, f'echo "the verdict" >{report}/gate.md')
    pllm.write_text("\n".join(lines) + "\n")
    pllm.chmod(0o755)
    defaults = {"BASE_REF": "", "PIN": "", "RECIPE": "", "QUANTITIES": "*", "GATE_SECONDS": "420", "ON_VOID": "fail"}
    files = {"GITHUB_STEP_SUMMARY": str(folder / "summary"), "GITHUB_OUTPUT": str(folder / "output")}
    done = subprocess.run(
        ["bash", str(SCRIPT)],
        env={**os.environ, **defaults, **files, "PLLM": str(pllm), "REPORT": str(report), **inputs},
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )
    summary = folder / "summary"
    return (
        done.returncode,
        done.stdout + (folder / "output").read_text(),
        summary.read_text() if summary.exists() else "",
        (folder / "words").read_text().splitlines(),
    )


@pytest.mark.parametrize(("code", "verdict"), [(0, "pass"), (5, "regression"), (3, "void"), (2, ""), (1, "")])
def test_the_verdict_is_the_exit_code(tmp_path: Path, code: int, verdict: str) -> None:
    found, told, summary, _ = run(tmp_path, code, BASE_REF="origin/main")
    assert found == code
    assert f"verdict={verdict}\n" in told
    assert summary == ("" if code == 2 else "the verdict\n")


def test_void_may_warn(tmp_path: Path) -> None:
    found, told, _, _ = run(tmp_path, 3, ON_VOID="warn")
    assert found == 0
    assert "::warning title=pllm gate: void::" in told
    assert "verdict=void\n" in told


def test_a_regression_never_warns_alone(tmp_path: Path) -> None:
    assert run(tmp_path, 5, ON_VOID="warn")[0] == 5


def test_inputs_are_words_and_never_code(tmp_path: Path) -> None:
    (tmp_path / "decode.txt").touch()
    _, _, _, words = run(
        tmp_path, 0, BASE_REF="$(touch hacked); x", PIN="a b.toml", RECIPE="r.toml", QUANTITIES="decode* TPOT*"
    )
    assert words[:4] == ["gate", "--quantities", "decode*", "TPOT*"]
    assert words[words.index("--base-ref") + 1] == "$(touch hacked); x"
    assert words[words.index("--pin") + 1] == "a b.toml"
    assert words[words.index("--recipe") + 1] == "r.toml"
    assert not (tmp_path / "hacked").exists()

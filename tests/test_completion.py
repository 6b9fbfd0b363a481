"""``pllm completion``: what the shells themselves make of the scripts."""

import shutil
import subprocess
from pathlib import Path

import pytest

from pllm.cli import COMMANDS, main


def written(shell: str, folder: Path, capsys: pytest.CaptureFixture[str]) -> Path:
    assert main(["completion", shell]) == 0
    path = folder / shell
    path.write_text(capsys.readouterr().out)
    return path


@pytest.mark.parametrize(
    ("words", "wanted"),
    [
        (["pllm", ""], set(COMMANDS) | {"--version", "--help"}),
        (["pllm", "ver"], {"verify"}),
        (["pllm", "run", "--log-format", ""], {"text", "json"}),
        (["pllm", "run", "--ssl"], {"--ssl-certfile", "--ssl-keyfile"}),
        (["pllm", "bench", ""], {"latency", "throughput", "serve", "startup"}),
        (["pllm", "bench", "serve", "--conc"], {"--concurrency"}),
        (["pllm", "completion", ""], {"bash", "zsh", "fish"}),
        (["pllm", "run", ""], set()),  # files, by bash itself
    ],
)
def test_bash(words: list[str], wanted: set[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = written("bash", tmp_path, capsys)
    typed = " ".join(f"'{word}'" for word in words)
    program = (
        f'source "$1"; COMP_WORDS=({typed}); COMP_CWORD={len(words) - 1}; _pllm; printf "%s\\n" "${{COMPREPLY[@]}}"'
    )
    done = subprocess.run(["bash", "-c", program, "-", str(path)], capture_output=True, text=True, check=True)
    assert set(done.stdout.split()) == wanted
    assert done.stderr == ""


@pytest.mark.parametrize("shell", ["zsh", "fish"])
def test_other_shells_read_theirs(shell: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = written(shell, tmp_path, capsys)
    for command in COMMANDS:
        assert command in path.read_text()
    if shutil.which(shell) is None:
        pytest.skip(f"{shell} is not installed")
    subprocess.run([shell, "-n", str(path)], check=True)


def test_a_shell_that_nobody_knows() -> None:
    with pytest.raises(SystemExit) as ended:
        main(["completion", "csh"])
    assert ended.value.code == 2

"""``pllm check``, ``inspect``, ``verify`` and ``cache`` as a user meets them."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from pllm.cli import COMMANDS, main
from pllm.runtime import check_cli

from .sealed import rewrite

GIB = 1 << 30


def test_check_says_what_fits(
    artifact_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(check_cli, "available_memory", lambda: 8 * GIB)
    assert main(["check", str(artifact_path)]) == 0
    out = capsys.readouterr().out
    assert "runs here" in out
    assert "64 blocks of 16 tokens" in out  # 4 sequences of 256 tokens
    assert "8.00 GiB" in out
    assert "256 │   4" in out


def test_check_refuses_with_four_what_does_not_fit(
    artifact_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(check_cli, "available_memory", lambda: 50_000)
    assert main(["check", str(artifact_path)]) == 4
    assert "largest max_model_len that fits is" in capsys.readouterr().err
    monkeypatch.setattr(check_cli, "available_memory", lambda: 8 * GIB)
    assert main(["check", str(artifact_path), "--memory", "40KiB"]) == 4
    assert main(["check", str(artifact_path), "--memory", "much"]) == 2
    assert main(["check", str(artifact_path), "--max-model-len", "257"]) == 2
    assert main(["check", str(artifact_path), "--max-num-seqs", "0"]) == 2


def test_check_reads_no_weights(artifact_path: Path) -> None:
    weights = artifact_path / "weights/00001.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    assert main(["check", str(artifact_path)]) == 0
    assert main(["verify", str(artifact_path), "--hashes-only"]) == 4


def test_check_names_a_mismatch(artifact_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rewrite(artifact_path, lambda d: d["requires"].update(torch="9.9.9"))  # type: ignore[attr-defined]
    assert main(["check", str(artifact_path)]) == 4
    assert "pip install torch==9.9.9" in capsys.readouterr().err
    assert main(["inspect", str(artifact_path)]) == 0  # which may look at what cannot run


def test_check_and_inspect_import_neither_torch_nor_numpy(artifact_path: Path) -> None:
    script = (
        "import sys; from pllm.cli import main; "
        "codes = [main(['check', sys.argv[1]]), main(['inspect', sys.argv[1]])]; "
        "assert codes == [0, 0], codes; "
        "heavy = {'torch', 'transformers', 'numpy', 'pllm.build'} & set(sys.modules); assert not heavy, heavy"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(artifact_path)], check=False, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


def test_inspect_shows_tables_and_the_manifest(artifact_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", str(artifact_path)]) == 0
    out = capsys.readouterr().out
    for text in ("TinyForCausalLM", "input_ids", "T x 15", "1 to 512", "golden.json", "tiny.toml"):
        assert text in out
    assert main(["inspect", str(artifact_path), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["name"] == "tiny"


def test_verify_hashes_everything(artifact_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["verify", str(artifact_path), "--hashes-only"]) == 0
    assert "8 files" in capsys.readouterr().out
    (artifact_path / "golden.json").write_text("{}")
    assert main(["verify", str(artifact_path)]) == 4
    err = capsys.readouterr().err
    assert err.startswith("pllm: error: ")
    assert "golden.json is damaged" in err
    assert "Traceback" not in err


def test_the_cache_is_listed_and_cleaned(own_cache: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["cache"]) == 0
    assert "holds nothing" in capsys.readouterr().out
    folder = own_cache / "checkpoints/tiny-0123"
    folder.mkdir(parents=True)
    (folder / "model.safetensors").write_bytes(b"x" * 2048)
    assert main(["cache", "list"]) == 0
    assert "tiny-0123" in capsys.readouterr().out
    assert main(["cache", "clean"]) == 0
    assert "2.00 KiB freed" in capsys.readouterr().out
    assert not folder.exists()


def test_help_lists_every_command_without_importing_one(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["--help"])
    assert ended.value.code == 0
    out = capsys.readouterr().out
    for name in COMMANDS:
        assert f"  {name} " in out
    with pytest.raises(SystemExit) as ended:
        main(["serve"])
    assert ended.value.code == 2


@pytest.mark.parametrize("name", sorted(COMMANDS))
def test_every_command_helps(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main([name, "--help"])
    assert ended.value.code == 0
    assert f"usage: pllm {name}" in capsys.readouterr().out


def test_a_reader_that_has_gone_is_no_error(artifact_path: Path) -> None:
    command = f"{sys.executable} -m pllm inspect {artifact_path} --json | head -c 1"
    done = subprocess.run(["bash", "-o", "pipefail", "-c", command], check=False, capture_output=True, text=True)
    assert done.stdout == "{"
    assert done.stderr == ""
    assert done.returncode == 0

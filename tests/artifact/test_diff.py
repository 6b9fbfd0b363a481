"""``pllm diff``: what changed is shown, what is alike is not."""

import json
import shutil
from pathlib import Path

import pytest

from pllm.cli import main

from .sealed import rewrite


@pytest.fixture
def pair(artifact_path: Path, tmp_path: Path) -> tuple[Path, Path]:
    for name, content in (("golden.json", '{"prompts":[]}'), ("measured/latency.json", '{"rows":[]}')):
        (artifact_path / name).write_text(content, encoding="utf-8")
    resize(artifact_path)
    return artifact_path, Path(shutil.copytree(artifact_path, tmp_path / "other"))


def resize(artifact: Path) -> None:
    """Say the sizes that the files have."""

    def change(document: dict) -> None:
        for name, entry in document["files"].items():
            entry["size"] = (artifact / name).stat().st_size

    rewrite(artifact, change)


def sections(before: Path, after: Path, capsys: pytest.CaptureFixture[str]) -> dict[str, list[dict]]:
    assert main(["diff", str(before), str(after), "--json"]) == 0
    return {each["title"]: each["changes"] for each in json.loads(capsys.readouterr().out)}


def test_the_same_artifact_has_no_changes(pair: tuple[Path, Path], capsys: pytest.CaptureFixture[str]) -> None:
    assert not any(sections(*pair, capsys).values())
    assert main(["diff", *map(str, pair)]) == 0
    out = " ".join(capsys.readouterr().out.split())
    assert "graph nodes and kernels: not recorded" in out
    assert "alike: recipe," in out


def test_changes_are_shown_where_they_are(pair: tuple[Path, Path], capsys: pytest.CaptureFixture[str]) -> None:
    before, after = pair
    for side, prompt, ms in ((before, [5, 6], 1.0), (after, [5, 7], 1.5)):
        golden = {"prompts": [{"prompt_token_ids": [1, 2], "token_ids": prompt}]}
        rows = [{"num_seqs": 1, "num_tokens": 1, "context": 128, "ms": ms}]
        (side / "golden.json").write_text(json.dumps(golden), encoding="utf-8")
        (side / "measured/latency.json").write_text(json.dumps({"rows": rows}), encoding="utf-8")
        graphs = {"programs": {"main": {"nodes": {"aten.add.Tensor": int(ms * 2)}, "kernels": {"fused": 3}}}}
        (side / "graphs.json").write_text(json.dumps(graphs), encoding="utf-8")
        rewrite(side, lambda d: d["files"].update({"graphs.json": {"size": 0, "sha256": "0" * 64}}))  # type: ignore[attr-defined]
        resize(side)
    rewrite(after, lambda d: d["memory"].update(activations=1500))  # type: ignore[attr-defined]
    found = sections(before, after, capsys)
    assert found["memory ledger, bytes"] == [{"what": "activations", "before": 1000, "after": 1500}]
    assert found["latencies, ms"] == [{"what": "1 tokens, 1 sequences of 128", "before": 1.0, "after": 1.5}]
    assert [each["after"] for each in found["golden tokens"]] == ["5 7"]
    assert found["graph nodes and kernels"] == [
        {"what": "main: nodes in all", "before": 2, "after": 3},
        {"what": "main: nodes, aten.add.Tensor", "before": 2, "after": 3},
    ]
    assert main(["diff", str(before), str(after)]) == 0
    assert "+50.0%" in capsys.readouterr().out


def test_what_is_no_artifact_is_refused(artifact_path: Path, tmp_path: Path) -> None:
    assert main(["diff", str(artifact_path), str(tmp_path / "nothing")]) == 4

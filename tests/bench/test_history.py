"""The history of measurements, and ``pllm report`` over it."""

import json
import re
from pathlib import Path

import pytest

from pllm.cli import main
from pllm.runtime.errors import UserInputError
from pllm.runtime.history import entry_of, fingerprint, read_history, trends, write_entry

MACHINE = {
    "cpu": "A <fast> CPU",
    "cores": 2,
    "features": ["avx2"],
    "memory_bytes": 1 << 30,
    "load": 0.1,
    "versions": {},
}


def bench(folder: Path, day: int, ttft: float, **machine: object) -> Path:
    document = {
        "format_version": 1,
        "measurement": "latency",
        "date": f"2026-11-{day:02}T00:00:00Z",
        "machine": MACHINE | machine,
        "subject": {"name": "quickstart"},
        "options": {},
        "results": {"ttft": {"count": 3, "p50": ttft}, "peak_rss": 7, "passes": [{"ttft": 1}]},
    }
    path = folder / f"{day}-{ttft}.json"
    path.write_text(json.dumps(document), encoding="utf-8")
    return path


def test_a_machine_is_its_hardware() -> None:
    assert fingerprint(MACHINE) == fingerprint(MACHINE | {"load": 3, "versions": {"torch": "2.13.0"}})
    assert fingerprint(MACHINE) != fingerprint(MACHINE | {"cores": 4})


def test_documents_become_trends_of_their_machine(tmp_path: Path) -> None:
    history = tmp_path / "deep" / "history.jsonl"
    paths = [bench(tmp_path, 3, 0.3), bench(tmp_path, 1, 0.2), bench(tmp_path, 2, 9.0, cores=64)]
    assert all(write_entry(history, entry_of(path)) for path in paths)
    assert not write_entry(history, entry_of(paths[0])), "it is there already"
    found = {(each.machine, each.name): each for each in trends(read_history(history))}
    mine = found[fingerprint(MACHINE), "ttft"]
    assert mine.values == (0.2, 0.3)
    assert mine.change == pytest.approx(1.5)
    assert found[fingerprint(MACHINE | {"cores": 64}), "ttft"].values == (9.0,)
    assert {name for _, name in found} == {"ttft", "peak_rss"}


def test_a_gate_s_document_gives_costs_and_counts(tmp_path: Path) -> None:
    document = {
        "measurement": "gate", "date": "2026-11-25", "machine": MACHINE, "sides": {"base": {}, "new": {}},
        "timings": [{"name": "decode", "base": 1.0, "new": 2.0}],
        "checks": [{"name": "decode", "new": 2000.0}, {"name": "kernels", "new": 48}, {"name": "tokens", "new": "ab"}],
    }  # fmt: skip
    path = tmp_path / "gate.json"
    path.write_text(json.dumps(document), encoding="utf-8")
    entry = entry_of(path)
    assert (entry.subject, entry.values) == ("new", {"decode": 2.0, "kernels": 48.0})


def test_report_draws(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    history, page = tmp_path / "history.jsonl", tmp_path / "report.html"
    paths = [bench(tmp_path, day, 0.1 * day) for day in (1, 2, 3)]
    assert main(["report", *map(str, paths), "--history", str(history), "--html", str(page)]) == 0
    out = capsys.readouterr().out
    assert "3 of 3 added" in " ".join(out.split())
    assert "+200.0%" in out
    assert "▁▄█" in out or "▁▅█" in out
    html = page.read_text(encoding="utf-8")
    assert "A &lt;fast&gt; CPU" in html
    assert html.count("<polyline") == 2
    assert not re.search(r"(src|href|url\(|@import|http)", html), "it asks no other host"


def test_what_is_no_report_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    history, other = tmp_path / "history.jsonl", tmp_path / "other.json"
    assert main(["report", "--history", str(history)]) == 2
    other.write_text("[]", encoding="utf-8")
    assert main(["report", str(other), "--history", str(history)]) == 2
    assert "no report of pllm bench" in capsys.readouterr().err
    history.write_text('{"machine": 1}\n', encoding="utf-8")
    with pytest.raises(UserInputError, match="line 1"):
        read_history(history)

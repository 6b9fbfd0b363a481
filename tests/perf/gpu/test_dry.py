"""The parts of gpu-check, run on a CPU with a tiny model: that they are not broken when a GPU first sees them."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]


@pytest.mark.parametrize(
    ("part", "whats"),
    [
        ("0.6b", {"build", "ceilings", "decode", "start", "first token"}),
        ("throughput", {"build", "start", "throughput"}),
        pytest.param("peers", {"transformers generate", "transformers continuous batching"}, marks=pytest.mark.nightly),
    ],
)
def test_a_part_runs_to_its_end_and_writes_its_rows(part: str, whats: set[str], tmp_path: Path) -> None:
    # As make gpu-check starts it: the link keeps build/ and kernels/ off the path.
    (tmp_path / "path").mkdir()
    (tmp_path / "path/pllm").symlink_to(ROOT / "pllm")
    environment = {**os.environ, "PYTHONPATH": str(tmp_path / "path"), "XDG_CACHE_HOME": str(tmp_path / "cache")}
    command = [sys.executable, "tests/perf/gpu/check.py", part, "--dry", "--seconds", "200"]
    done = subprocess.run(
        [*command, "--output", str(tmp_path / "out")],
        env=environment, cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    document = json.loads((tmp_path / f"out/{part}.json").read_text())
    assert {row["what"] for row in document["rows"]} == whats
    assert document["dry"] and all(row["gpu"] == "none: a dry run" for row in document["rows"])
    decoded = [row for row in document["rows"] if row["what"] == "decode"]
    assert part != "0.6b" or {row["batch"] for row in decoded} == {1, 2, 4, 8}

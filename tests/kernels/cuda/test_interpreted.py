"""Runs the tests of `interpreted/`: the kernels, interpreted on CPU tensors, which a process decides at its start."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).parent / "interpreted"


def run(marker: str) -> int:
    """How many tests ran; all passed."""
    # The first thread is as fast as two, and the interpreter's arrays are small.
    environment = {**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-P", "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", "-m", marker, str(FOLDER)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    summary = re.search(r"(\d+) passed", done.stdout)
    assert summary is not None
    assert "skipped" not in done.stdout
    return int(summary[1])


def test_the_kernels_interpreted() -> None:
    assert run("not nightly") >= 120


@pytest.mark.nightly
def test_the_kernels_interpreted_over_random_steps() -> None:
    assert run("nightly") >= 60

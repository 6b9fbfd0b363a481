"""Every kernel compiles for every architecture, without a GPU, and none spills. It takes a process of its own."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ARCHITECTURES = [
    "sm_90",
    pytest.param("sm_80", marks=pytest.mark.nightly),
    pytest.param("sm_100", marks=pytest.mark.nightly),
]


@pytest.mark.parametrize("device", ARCHITECTURES)
def test_nothing_spills(device: str, tmp_path: Path) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, "-P", "-m", "pllm.kernels.cuda.resources", "--device", device],
        env={**environment, "TRITON_CACHE_DIR": str(tmp_path)}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert "no spills" in done.stdout

"""Schemathesis, a stranger's idea of what could be sent, over our own OpenAPI document: valid and invalid data."""

import os
import re
import subprocess
import sys
from pathlib import Path

from .servers import StartServer, eventually

OPTIONS = [
    "--mode=all",
    "--phases=coverage,fuzzing",
    "--max-examples=40",
    "--continue-on-failure",
    "--seed=1",
    "--generation-database=none",
    "--no-color",
    "--request-timeout=30",
]
# A schema says what a field may be. That two fields go together, or that a prompt fits this model's context, it cannot
# say: such a request is a 400 that names the field, like any other mistake. All other checks stand as they are: no
# server error, invalid data refused, every status documented, every answer as its schema says.
CONFIG = """\
[checks.positive_data_acceptance]
expected-statuses = ["2xx", "400", "404"]
"""


def test_no_failures(start: StartServer, tmp_path: Path) -> None:
    server = start().wait_ready()
    config = tmp_path / "schemathesis.toml"
    config.write_text(CONFIG)
    program = str(Path(sys.executable).with_name("schemathesis"))
    done = subprocess.run(
        [program, "--config-file", str(config), "run", f"{server.url}/openapi.json", *OPTIONS],
        cwd=tmp_path,
        env={**os.environ, "NO_COLOR": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-20_000:] + done.stderr[-2_000:]
    counts = re.search(r"(\d+) generated, (\d+) passed", done.stdout)
    assert counts is not None, done.stdout
    assert counts[1] == counts[2]
    assert int(counts[1]) > 1000
    eventually(server.is_idle)
    assert not any("engine has stopped" in line for line in server.log)

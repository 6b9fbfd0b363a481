"""The quickstart artifact, built where it is not fresh and shared with `make serve` (or another one, that
``PLLM_TEST_ARTIFACT`` names, for a second environment); and a real server over it."""

import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import psutil
import pytest

from pllm import LLM
from pllm.build.pipeline import build_artifact
from pllm.build.progress import Progress
from pllm.build.recipe import Recipe

ROOT = Path(__file__).parents[2]
LEAN = Path(__file__).parent / "lean"


@pytest.fixture(scope="session")
def artifact() -> Path:
    target = Path(os.environ.get("PLLM_TEST_ARTIFACT") or ROOT / "artifacts" / "quickstart")
    build_artifact(Recipe.load(ROOT / "recipes" / "quickstart.toml", []), target, Progress())
    return target


@pytest.fixture(scope="module")
def llm(artifact: Path) -> Iterator[LLM]:
    with LLM(model=str(artifact)) as opened:
        yield opened


def lean_environment(audit: Path) -> dict[str, str]:
    """No program on the PATH, a compiler least of all; no torch, no model library and no part of the build that could
    be imported (`lean.sitecustomize`). What is started or unpickled all the same is written down in ``audit``.
    """
    path = os.pathsep.join(filter(None, [str(LEAN), os.environ.get("PYTHONPATH")]))
    return {**os.environ, "PATH": "/nonexistent", "PYTHONPATH": path, "PLLM_AUDIT": str(audit)}


@pytest.fixture
def audit(tmp_path: Path) -> Path:
    """An empty file for `lean_environment`."""
    file = tmp_path / "audit"
    file.touch()
    return file


class Server:
    """A running ``pllm run`` in a lean environment. ``audit``: what it has started or unpickled, a line each."""

    def __init__(self, artifact: Path, audit: Path) -> None:
        self.audit = audit
        self.log: list[str] = []
        self.port = 0
        self._ready = threading.Event()
        self.process = subprocess.Popen(
            [sys.executable, "-m", "pllm", "run", str(artifact), "--port", "0"],
            stderr=subprocess.PIPE,
            text=True,
            env=lean_environment(audit),
        )
        threading.Thread(target=self._read, daemon=True).start()
        assert self._ready.wait(60) and self.port, "".join(self.log)

    def _read(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self.log.append(line)
            match = re.search(r"on http://\S+:(\d+) \(ready", line)
            if match:
                self.port = int(match[1])
                self._ready.set()
        self._ready.set()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def metric(self, name: str) -> float:
        """A gauge or a counter, now."""
        metrics = httpx.get(f"{self.url}/metrics", timeout=30).text
        match = re.search(rf"^pllm:{name}{{[^}}]*}} (\S+)$", metrics, re.MULTILINE)
        assert match, metrics
        return float(match[1])

    def wait_for_usage(self, wanted: Callable[[float], bool]) -> None:
        """Until the part of the KV blocks that are in use is such a one: ten times as long as it may take."""
        deadline = time.monotonic() + 10
        while not wanted(self.metric("kv_cache_usage_perc")):
            assert time.monotonic() < deadline
            time.sleep(0.01)

    @property
    def engine(self) -> psutil.Process:
        children = psutil.Process(self.process.pid).children()
        return next(child for child in children if "pllm.runtime.engine_process" in child.cmdline())


@pytest.fixture(scope="module")
def server(artifact: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    running = Server(artifact, tmp_path_factory.mktemp("server") / "audit")
    try:
        yield running
    finally:
        running.process.terminate()
        try:
            running.process.wait(30)
        except subprocess.TimeoutExpired:
            running.process.kill()
            raise

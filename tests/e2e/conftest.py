"""The quickstart artifact, built where it is not fresh and shared with `make serve`; and a real server over it."""

import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from pllm import LLM
from pllm.build.pipeline import build_artifact
from pllm.build.progress import Progress
from pllm.build.recipe import Recipe

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="session")
def artifact() -> Path:
    target = ROOT / "artifacts" / "quickstart"
    build_artifact(Recipe.load(ROOT / "recipes" / "quickstart.toml", []), target, Progress())
    return target


@pytest.fixture(scope="module")
def llm(artifact: Path) -> Iterator[LLM]:
    with LLM(model=str(artifact)) as opened:
        yield opened


class Server:
    """A running ``pllm run`` that finds no program on its PATH, a compiler least of all."""

    def __init__(self, artifact: Path) -> None:
        self.log: list[str] = []
        self.port = 0
        self._ready = threading.Event()
        self.process = subprocess.Popen(
            [sys.executable, "-m", "pllm", "run", str(artifact), "--port", "0"],
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "PATH": "/nonexistent"},
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

    @property
    def engine(self) -> psutil.Process:
        children = psutil.Process(self.process.pid).children()
        return next(child for child in children if "pllm.runtime.engine_process" in child.cmdline())


@pytest.fixture(scope="module")
def server(artifact: Path) -> Iterator[Server]:
    running = Server(artifact)
    try:
        yield running
    finally:
        running.process.terminate()
        try:
            running.process.wait(30)
        except subprocess.TimeoutExpired:
            running.process.kill()
            raise

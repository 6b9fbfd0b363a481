"""The sides of a comparison: which program runs which model, and how it is started."""

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .disturbance import CpuAccount

__all__ = ["ROOT", "Side", "Trial", "TrialError", "run_module"]

HERE = Path(__file__).parents[1]
ROOT = HERE.parents[1]
_TIME_LIMIT = 3600.0


class TrialError(Exception):
    """A worker that failed or said nothing: the comparison would lack a value, so it ends."""


@dataclass(frozen=True, slots=True)
class Trial:
    """What one worker answered: ``metrics`` by the names of `metrics.METRICS`. ``others``: the share of the cores that
    everybody else took meanwhile."""

    metrics: dict[str, float]
    passes: list[list[float | None]]
    token_ids: list[list[int]]
    versions: dict[str, str]
    others: float = 0.0


@dataclass(frozen=True, slots=True)
class Side:
    """``label`` in the table; ``module`` is the worker, ``model`` and ``engine`` its arguments; ``workloads``: those
    that it can run."""

    label: str
    module: str
    engine: str
    model: Path
    workloads: tuple[str, ...] = ("W1", "W2", "W3", "W4")
    python: Path = Path(sys.executable)
    is_ours: bool = False

    def run(self, workload: str, *, vocab_size: int, reps: int, threads: int) -> Trial:
        """One process (which may start others), from its start to its end. Raises TrialError."""
        words = [
            *(str(self.model), workload, "--engine", self.engine, "--vocab-size", str(vocab_size)),
            *("--reps", str(reps), "--threads", str(threads)),
        ]
        before = CpuAccount.now()
        try:
            done = run_module(self.python, self.module, words, threads)
        except subprocess.TimeoutExpired as error:
            raise TrialError(f"{self.label}, {workload}: no answer within {error.timeout:.0f} s") from None
        others = CpuAccount.now().others_since(before)
        lines = done.stdout.strip().splitlines()
        if done.returncode != 0 or not lines:
            said = "\n".join(done.stderr.strip().splitlines()[-15:])
            raise TrialError(f"{self.label}, {workload}: exit code {done.returncode}\n{said}")
        answer: dict[str, Any] = json.loads(lines[-1])
        return Trial(**answer, others=others)


def run_module(python: Path, module: str, words: list[str], threads: int) -> subprocess.CompletedProcess[str]:
    """A program of this package in a process of its own, to its end."""
    environment = {
        **{name: value for name, value in os.environ.items() if name != "PLLM_API_KEY"},
        "PYTHONPATH": os.pathsep.join(filter(None, [str(HERE), os.environ.get("PYTHONPATH")])),
        "PYTHONSAFEPATH": "1",  # the repository's build/ and kernels/ are no packages of PyPI
        "OMP_NUM_THREADS": str(threads),
        "MKL_NUM_THREADS": str(threads),
        "TOKENIZERS_PARALLELISM": "false",
        "HF_HUB_OFFLINE": "1",
    }
    command = [str(python), "-m", f"peers.{module}", *words]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=_TIME_LIMIT)

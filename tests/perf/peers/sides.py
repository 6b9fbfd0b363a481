"""The sides of a comparison: which program runs which model, and how it is started."""

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

__all__ = ["LLAMA_PYTHON", "Side", "Trial", "TrialError"]

HERE = Path(__file__).parents[1]
ROOT = HERE.parents[1]
LLAMA_PYTHON = ROOT / ".venv-peers" / "llama-cpp" / "bin" / "python"
_TIME_LIMIT = 3600.0


class TrialError(Exception):
    """A worker that failed or said nothing: the comparison would lack a value, so it ends."""


@dataclass(frozen=True, slots=True)
class Trial:
    """What one worker answered: ``metrics`` by the names of `metrics.METRICS`."""

    metrics: dict[str, float]
    passes: list[list[float | None]]
    token_ids: list[list[int]]
    versions: dict[str, str]


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
        command = [
            *(str(self.python), "-m", f"peers.{self.module}", str(self.model), workload),
            *("--engine", self.engine, "--vocab-size", str(vocab_size)),
            *("--reps", str(reps), "--threads", str(threads)),
        ]
        environment = {
            **{name: value for name, value in os.environ.items() if name != "PLLM_API_KEY"},
            "PYTHONPATH": os.pathsep.join(filter(None, [str(HERE), os.environ.get("PYTHONPATH")])),
            "PYTHONSAFEPATH": "1",  # the repository's build/ and kernels/ are no packages of PyPI
            "OMP_NUM_THREADS": str(threads),
            "MKL_NUM_THREADS": str(threads),
            "TOKENIZERS_PARALLELISM": "false",
            "HF_HUB_OFFLINE": "1",
        }
        done = subprocess.run(
            command, env=environment, capture_output=True, text=True, check=False, timeout=_TIME_LIMIT
        )
        lines = done.stdout.strip().splitlines()
        if done.returncode != 0 or not lines:
            said = "\n".join(done.stderr.strip().splitlines()[-15:])
            raise TrialError(f"{self.label}, {workload}: exit code {done.returncode}\n{said}")
        answer: dict[str, Any] = json.loads(lines[-1])
        return Trial(**answer)

"""An engine whose model runner returns at once, or after ``PLLM_EDGE_STEP`` seconds: the scheduler is real, the next
token is a constant."""

import os
import time
from pathlib import Path
from types import SimpleNamespace

from pllm.runtime.engine import Engine
from pllm.runtime.latencies import Latencies
from pllm.runtime.scheduler import Scheduler
from pllm.runtime.scheduler_config import SchedulerConfig
from pllm.runtime.step import SampledToken, SchedulerOutput, StepResult

__all__ = ["open_core"]

_TOKEN = ord("x")


class _AtOnce:
    """The model runner."""

    def __init__(self, step_seconds: float) -> None:
        self._step_seconds = step_seconds

    def execute(self, out: SchedulerOutput) -> StepResult:
        """The same token for everybody."""
        if self._step_seconds:
            time.sleep(self._step_seconds)
        return StepResult(tuple(SampledToken(spec.seq_id, _TOKEN) for row in out.rows for spec in row.samples))


class _Core:
    """What an engine process opens."""

    manifest = SimpleNamespace(name="at-once", provenance=SimpleNamespace(checkpoint="tests/at-once"), grammars=None)
    latencies = Latencies(())
    notices = ()

    def __init__(self, config: SchedulerConfig) -> None:
        self.engine = Engine(Scheduler(config), _AtOnce(float(os.environ.get("PLLM_EDGE_STEP", "0"))))

    def close(self) -> None:
        """Nothing is held."""


def open_core(artifact: Path, max_num_seqs: int = 256, **limits: object) -> _Core:
    """The engine, with room for ``max_num_seqs`` sequences of the whole context."""
    return _Core(
        SchedulerConfig(
            max_num_seqs=max_num_seqs,
            max_num_batched_tokens=8192,
            max_model_len=1024,
            block_size=16,
            num_blocks=max_num_seqs * 64,
            prefill_chunk=1024,
            max_logit_rows=1024,
            vocab_size=260,
        )
    )

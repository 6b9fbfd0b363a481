"""An engine whose model is a counter, and whose clock is the number of its steps."""

from pllm.runtime.engine import Engine
from pllm.runtime.scheduler import Scheduler
from pllm.runtime.scheduler_config import SchedulerConfig
from pllm.runtime.step import SampledToken, SchedulerOutput, StepResult


class Steps:
    """A model runner that says the token 7, and a clock that stands still between its steps."""

    def __init__(self, *, error: str | None = None) -> None:
        self.count = 0
        self.batches: list[int] = []
        self._error = error

    def execute(self, out: SchedulerOutput) -> StepResult:
        self.count += 1
        self.batches.append(len(out.rows))
        return StepResult(
            tuple(SampledToken(spec.seq_id, 7, error=self._error) for r in out.rows for spec in r.samples)
        )

    def clock(self) -> float:
        return float(self.count)


def engine_of(runner: Steps, *, num_blocks: int = 64, max_num_seqs: int = 8) -> Engine:
    config = SchedulerConfig(
        max_num_seqs=max_num_seqs,
        max_num_batched_tokens=64,
        max_model_len=256,
        block_size=16,
        num_blocks=num_blocks,
        prefill_chunk=64,
        max_logit_rows=64,
        vocab_size=4000,
        enable_prefix_caching=False,
    )
    return Engine(Scheduler(config), runner)

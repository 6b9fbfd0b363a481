"""The model runner: carries out what the scheduler decided. Copies, stages, runs, samples."""

from pllm.kernels.cpu.library import CpuLibrary
from pllm.runtime.inputs import InputBuffers
from pllm.runtime.kv_pool import KvPool
from pllm.runtime.program import Program
from pllm.runtime.sampling import Sampler
from pllm.runtime.scheduler_config import SchedulerConfig
from pllm.runtime.step import SchedulerOutput, StepResult

__all__ = ["ModelRunner"]


class ModelRunner:
    """Runs steps on this machine's CPU, all from one thread."""

    def __init__(
        self, program: Program, pool: KvPool, library: CpuLibrary, config: SchedulerConfig, *, num_threads: int
    ) -> None:
        self._program = program
        self._pool = pool
        self._library = library
        self._inputs = InputBuffers(config)
        self._sampler = Sampler(library)
        self._num_threads = num_threads
        self._is_prepared = False

    def execute(self, out: SchedulerOutput) -> StepResult:
        """Compute the step, which has at least one row. Raises PllmError or OperatorError where it cannot be done."""
        if not self._is_prepared:
            # OpenMP keeps the number for each thread: this is the one that runs the steps.
            self._library.set_num_threads(self._num_threads)
            self._is_prepared = True
        if out.copies:
            self._pool.copy_blocks(self._library, out.copies)
        step = self._inputs.stage(out)
        logits = self._program.run({**step.arrays, "kv": self._pool.array})
        sampled = logits if len(step.sample_rows) == len(logits) else logits[step.sample_rows]
        tokens = self._sampler.sample(sampled, step.samples) if step.samples else []
        return StepResult(
            tuple(tokens),
            {
                row.seq_id: self._sampler.prompt_logprobs(
                    logits[first : first + len(row.prompt_targets)], row.prompt_targets, row.prompt_logprobs or 0
                )
                for row, first in step.prompt_rows
            },
        )

"""A worker whose decoding is 5% slower: the regression that the gate must find, made here and nowhere in pllm."""

import sys
import time

from pllm.runtime.gate.worker import main
from pllm.runtime.model_runner import ModelRunner
from pllm.runtime.step import SchedulerOutput, StepResult

__all__ = ["SLOWDOWN"]

SLOWDOWN = 0.05
_execute = ModelRunner.execute


def _slower(self: ModelRunner, out: SchedulerOutput) -> StepResult:
    began = time.perf_counter()
    result = _execute(self, out)
    if all(len(row.token_ids) == 1 for row in out.rows):
        ended = time.perf_counter()
        until = ended + SLOWDOWN * (ended - began)
        while time.perf_counter() < until:
            pass
    return result


if __name__ == "__main__":
    ModelRunner.execute = _slower  # type: ignore[method-assign]
    sys.exit(main())

"""What a cold start pays for: the scheduler's side needs neither torch nor numpy."""

import subprocess
import sys

import msgspec
import pytest

from pllm.runtime.sequence import FinishReason
from pllm.runtime.step import SchedulerStats, TokenDelta, TokenLogprobs

HEAVY = ("torch", "numpy", "transformers", "sympy", "pydantic", "asyncio", "pllm.build")


@pytest.mark.parametrize(
    "module", ["errors", "sampling_params", "sequence", "step", "block_pool", "scheduler", "engine"]
)
def test_no_torch_and_no_numpy(module: str) -> None:
    code = f"import sys, pllm.runtime.{module}; print([name for name in {HEAVY} if name in sys.modules])"
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert shown.strip() == "[]"


def test_the_sampler_needs_no_torch() -> None:
    code = "import sys, pllm.runtime.sampling; print('torch' in sys.modules)"
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert shown.strip() == "False"


def test_deltas_and_stats_cross_processes() -> None:
    entry = TokenLogprobs(1, -0.5, 1, ((1, -0.5, 1), (2, -1.5, 2)))
    for value in (
        TokenDelta("a", 0, [1], [entry], FinishReason.STOP, 7, 4, [entry]),
        TokenDelta("a", 1, [], None, "error", error="NaN", first_scheduled_time=0.25),
        SchedulerStats(1, 2, 3, 4, 5, 6, 7, 8, 9, 10),
    ):
        assert msgspec.msgpack.decode(msgspec.msgpack.encode(value), type=type(value)) == value

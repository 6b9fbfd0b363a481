"""What workers measure, and what is made of their answers."""

import pytest

from pllm.runtime.gate.quantity import PassTask, Quantity, name_of, tasks_for
from pllm.runtime.gate.quiet import RunWait, quiet_duration, wait_share
from pllm.runtime.gate.turns import PassTurn, Took
from pllm.runtime.latencies import Latency

DECODE, PREFILL, LONG = Latency(8, 8, 128, 1.0), Latency(1, 32, 32, 2.0), Latency(1, 512, 512, 50.0)


def test_a_quiet_step_is_believed_before_one_that_waited() -> None:
    # Ten steps of 10 ms; the others waited for a core, and were slower by more than that: caches were cold.
    seconds = [0.010] * 10 + [0.020] * 20
    waits = [0.0] * 10 + [0.005] * 20
    assert quiet_duration(seconds, waits) == 0.010


def test_waits_are_taken_off_where_no_step_was_quiet() -> None:
    assert quiet_duration([0.030, 0.050, 0.040], [0.010, 0.030, 0.020]) == pytest.approx(0.020)


def test_one_lucky_step_does_not_decide() -> None:
    assert quiet_duration([0.005, *[0.010] * 40], [0.0] * 41) == 0.010


def test_share_of_waiting() -> None:
    assert wait_share([1.0, 3.0], [0.0, 1.0]) == 0.25


def test_the_kernel_counts_this_threads_waits() -> None:
    wait = RunWait()
    before = wait.seconds()
    assert 0 <= before <= wait.seconds()
    wait.close()


def test_rows_and_passes() -> None:
    assert [name_of(row) for row in (DECODE, PREFILL, LONG)] == [
        "decode, 8 sequences",
        "prefill, 32 tokens",
        "prefill, 512 tokens",
    ]
    tasks = tasks_for([DECODE, PREFILL, LONG], 2048)
    assert [task.every for task in tasks] == [1, 1, 3, 1, 3]
    names = [quantity.name for task in tasks for quantity in task.quantities]
    assert names[3:] == ["TTFT, W1", "TPOT, W1", "throughput, W2"]
    assert len(tasks_for([DECODE, PREFILL, LONG], 128)) == 3


def test_a_pass_is_the_sum_of_its_steps_each_at_its_best() -> None:
    """Two passes of three steps, two tokens; each pass is disturbed at another step."""
    ttft, tpot, whole = (Quantity(name, "s", 1.0) for name in ("ttft", "tpot", "throughput"))
    task = PassTask(PassTurn(workload="W1"), 3, ttft, tpot, whole)
    first = Took(seconds=[4.0, 9.0, 1.0], waits=[0.0, 8.0, 0.0], num_first=1)
    other = Took(seconds=[9.0, 1.0, 1.0], waits=[5.0, 0.0, 0.0], num_first=1)
    assert task.costs([first, other]) == {ttft: 4.0, tpot: 1.0, whole: 6.0}


def test_a_rate_is_shown_as_one() -> None:
    assert Quantity("throughput", "tokens/s", 256.0, is_rate=True).shown(2.0) == 128.0
    assert Quantity("step", "ms", 1e3).shown(0.5) == 500.0

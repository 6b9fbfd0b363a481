"""A run's clock is the step counter here, so its times are exact."""

import pytest

from pllm.runtime.bench.engine_run import EngineRun
from pllm.runtime.bench.workload import Workload, WorkloadRequest
from pllm.runtime.errors import MeasurementError

from .engines import Steps, engine_of


def workload(*lengths: tuple[int, int], concurrency: int) -> Workload:
    requests = tuple(WorkloadRequest((5,) * prompt, output) for prompt, output in lengths)
    return Workload("test", requests, concurrency)


def test_one_request_step_by_step() -> None:
    steps = Steps()
    run = EngineRun.of(engine_of(steps), workload((128, 5), concurrency=1), clock=steps.clock)
    (timing,) = run.timings
    # 128 tokens in chunks of 64: the first token comes with the second step, and then one a step.
    assert (timing.sent, timing.chunks) == (0.0, (2.0, 3.0, 4.0, 5.0, 6.0))
    assert (timing.ttft, timing.tpot, run.makespan, run.decode_rate) == (2.0, 1.0, 6.0, 1.0)
    assert run.token_ids == ((7,) * 5,)
    assert run.num_steps == steps.count == 6


def test_no_more_than_asked_run_at_once_and_the_next_is_sent_when_one_ends() -> None:
    steps = Steps()
    run = EngineRun.of(engine_of(steps), workload(*[(4, 3)] * 5, concurrency=2), clock=steps.clock)
    assert steps.batches == [2, 2, 2, 2, 2, 2, 1, 1, 1]
    assert [timing.sent for timing in run.timings] == [0.0, 0.0, 3.0, 3.0, 6.0]
    assert {timing.ttft for timing in run.timings} == {1.0}


def test_the_decode_rate_counts_what_came_after_everybodys_first_token() -> None:
    steps = Steps()
    # The second prompt needs the budget of two steps beside the first one's decoding.
    run = EngineRun.of(engine_of(steps), workload((64, 6), (64, 4), concurrency=2), clock=steps.clock)
    first, second = run.timings
    since = max(first.chunks[0], second.chunks[0])
    later = [when for when in first.chunks + second.chunks if when > since]
    assert first.chunks[0] < second.chunks[0]
    assert run.decode_rate == len(later) / (run.ended - since)
    assert EngineRun.of(engine_of(Steps()), workload((4, 1), concurrency=1)).decode_rate is None


def test_kv_utilisation_is_tokens_held_over_slots_allocated() -> None:
    steps = Steps()
    run = EngineRun.of(engine_of(steps), workload((15, 4), concurrency=1), clock=steps.clock)
    # Held after each step but the last, which frees everything: 15 and 16 of one block, 17 of two.
    assert run.kv_utilisation == (15 / 16, 16 / 16, 17 / 32)
    assert run.num_preemptions == 0


def test_preemptions_are_counted_for_this_run_alone() -> None:
    steps = Steps()
    engine = engine_of(steps, num_blocks=17)
    many = workload(*[(60, 40)] * 4, concurrency=4)
    first = EngineRun.of(engine, many, clock=steps.clock)
    assert first.num_preemptions > 0
    assert EngineRun.of(engine, many, clock=steps.clock).num_preemptions == first.num_preemptions
    assert EngineRun.of(engine, workload((4, 4), concurrency=1), clock=steps.clock).num_preemptions == 0


def test_a_request_that_fails_makes_the_measurement_void() -> None:
    with pytest.raises(MeasurementError, match="the logits are not numbers") as raised:
        EngineRun.of(engine_of(Steps(error="the logits are not numbers")), workload((4, 4), concurrency=1))
    assert raised.value.exit_code == 3


def test_an_answer_that_is_too_short_makes_the_measurement_void() -> None:
    with pytest.raises(MeasurementError, match="6 tokens came instead of 10"):
        EngineRun.of(engine_of(Steps()), workload((250, 10), concurrency=1))

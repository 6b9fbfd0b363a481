import asyncio
from itertools import pairwise

import pytest

from pllm.runtime.bench.http_client import HttpError
from pllm.runtime.bench.load import Load, LoadRun
from pllm.runtime.bench.timing import RequestTiming
from pllm.runtime.bench.workload import Workload, WorkloadRequest


def workload(count: int, concurrency: int) -> Workload:
    return Workload("test", tuple(WorkloadRequest((number,), 1) for number in range(count)), concurrency)


def test_all_at_once_or_as_a_poisson_process() -> None:
    assert list(Load().arrivals(3)) == [0.0, 0.0, 0.0]
    arrivals = list(Load(request_rate=50, seed=1).arrivals(5000))
    assert arrivals == list(Load(request_rate=50, seed=1).arrivals(5000))
    assert arrivals != list(Load(request_rate=50, seed=2).arrivals(5000))
    gaps = [later - earlier for earlier, later in pairwise(arrivals)]
    assert arrivals[0] == 0.0
    assert sum(gaps) / len(gaps) == pytest.approx(1 / 50, rel=0.1)
    # Exponential gaps: the variance is the square of the mean.
    assert sum((gap - 1 / 50) ** 2 for gap in gaps) / len(gaps) == pytest.approx(1 / 2500, rel=0.2)


def test_no_more_than_asked_are_unfinished_and_all_are_answered() -> None:
    running, most, order = 0, 0, []

    async def send(wanted: WorkloadRequest) -> RequestTiming:
        nonlocal running, most
        running += 1
        most = max(most, running)
        order.append(wanted.prompt_token_ids[0])
        await asyncio.sleep(0.001)
        running -= 1
        return RequestTiming(0.0, (1.0,), 1)

    run = asyncio.run(LoadRun.of(workload(20, 3), Load(), send))
    assert (most, len(run.timings), run.failures) == (3, 20, ())
    assert order == list(range(20))


def test_requests_that_fail_or_come_late_are_told_apart() -> None:
    ended: list[int] = []

    async def send(wanted: WorkloadRequest) -> RequestTiming:
        (number,) = wanted.prompt_token_ids
        if number == 1:
            raise HttpError("the server answered with 429")
        if number == 2:
            try:
                await asyncio.sleep(60)
            finally:
                ended.append(number)
        return RequestTiming(0.0, (1.0,), 1)

    run = asyncio.run(LoadRun.of(workload(4, 4), Load(time_limit=0.2), send))
    assert len(run.timings) == 2
    assert run.failures == ("the server answered with 429", "not finished within 0.2 s")
    assert ended == [2]

"""Load on a server: when requests are sent, and what becomes of each."""

import asyncio
import random
import time
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from itertools import accumulate

from pllm.runtime.bench.http_client import HttpError
from pllm.runtime.bench.timing import RequestTiming
from pllm.runtime.bench.workload import Workload, WorkloadRequest

__all__ = ["Load", "LoadRun"]

Send = Callable[[WorkloadRequest], Awaitable[RequestTiming]]
"""One request to the server, followed to its end. Raises HttpError."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """``request_rate``: arrivals a second, with exponential gaps (a Poisson process) drawn from ``seed``; infinite: all
    at once. ``time_limit``: seconds after which what is unfinished is given up.
    """

    request_rate: float = float("inf")
    seed: int = 0
    time_limit: float = 600.0

    def arrivals(self, count: int) -> Iterator[float]:
        """When each request arrives, in seconds after the first, which arrives at once (as in ``vllm bench serve``)."""
        rng = random.Random(self.seed)  # noqa: S311  (arrivals, not secrets)
        endless = self.request_rate == float("inf")
        gaps = (0.0 if endless else rng.expovariate(self.request_rate) for _ in range(count - 1))
        return accumulate(gaps, initial=0.0)


@dataclass(frozen=True, slots=True)
class LoadRun:
    """What became of a load: the timings of requests that succeeded, and why the others did not."""

    duration: float
    timings: tuple[RequestTiming, ...]
    failures: tuple[str, ...]

    @classmethod
    async def of(cls, workload: Workload, load: Load, send: Send) -> "LoadRun":
        """Send the workload. One that arrives while ``workload.concurrency`` are unfinished waits its turn here, and
        its clock starts when it is sent: waiting in the client is not the server's time."""
        gate = asyncio.Semaphore(workload.concurrency)
        began = time.perf_counter()

        async def one(wanted: WorkloadRequest, arrival: float) -> RequestTiming | str:
            await asyncio.sleep(max(0.0, began + arrival - time.perf_counter()))
            async with gate:
                try:
                    return await send(wanted)
                except HttpError as error:
                    return str(error)

        arrivals = load.arrivals(len(workload.requests))
        tasks = [
            asyncio.ensure_future(one(wanted, arrival))
            for wanted, arrival in zip(workload.requests, arrivals, strict=True)
        ]
        done, late = await asyncio.wait(tasks, timeout=load.time_limit)
        duration = time.perf_counter() - began
        for task in late:
            task.cancel()
        await asyncio.gather(*late, return_exceptions=True)
        outcomes = [task.result() for task in tasks if task in done]
        failures = [outcome for outcome in outcomes if isinstance(outcome, str)]
        failures += [f"not finished within {load.time_limit:g} s"] * len(late)
        timings = tuple(outcome for outcome in outcomes if isinstance(outcome, RequestTiming))
        return cls(duration, timings, tuple(failures))

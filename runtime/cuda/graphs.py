"""Graphs: what decoding launches, recorded once for every bucket, and replayed.

A bucket is a number of rows; a batch runs in the smallest bucket that holds it, and the rows left over belong to no
sequence. All captures share one memory pool, the largest first: what a smaller one needs then fits into what the larger
ones have taken, so that together they hold little more than the largest alone.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

__all__ = ["BucketGraphs", "CaptureTime", "GraphDevice"]

_GraphT = TypeVar("_GraphT")


class GraphDevice(Protocol[_GraphT]):
    """What captures and replays. Between `begin_capture` and `end_capture` nothing runs: launches are recorded."""

    def begin_capture(self) -> None: ...

    def end_capture(self) -> _GraphT:
        """The graph of what was launched since `begin_capture`; its memory comes from the one pool of all graphs."""

    def replay(self, graph: _GraphT) -> None:
        """Launch all that the graph holds. Does not wait for it."""

    def synchronize(self) -> None:
        """Wait for everything that was launched."""


@dataclass(frozen=True, slots=True)
class CaptureTime:
    """What opening one bucket took, in milliseconds: its first run, which loads kernels, and its capture."""

    bucket: int
    first_run_ms: float
    capture_ms: float


class BucketGraphs(Generic[_GraphT]):
    """One graph a bucket."""

    def __init__(
        self, device: GraphDevice[_GraphT], graphs: dict[int, _GraphT], times: tuple[CaptureTime, ...]
    ) -> None:
        self._device = device
        self._graphs = graphs
        self.buckets = tuple(sorted(graphs))
        self.times = times
        """In the order of the captures."""

    @classmethod
    def capture(
        cls,
        device: GraphDevice[_GraphT],
        buckets: Sequence[int],
        run: Callable[[int], None],
        captured: Callable[[CaptureTime], None] | None = None,
    ) -> "BucketGraphs[_GraphT]":
        """Record `run(bucket)` for every bucket, which must launch the same work on the same memory each time.
        `captured` hears of each as it is done.

        Every bucket runs once as it is before anything is captured: a first run loads kernels and lets libraries
        allocate, and neither may happen while a graph is recorded.
        """
        order = sorted(set(buckets), reverse=True)
        if not order or order[-1] < 1:
            raise ValueError(f"buckets are numbers of rows, at least one of them: {list(buckets)}")
        first_runs = {}
        for bucket in order:
            began = time.perf_counter()
            run(bucket)
            device.synchronize()
            first_runs[bucket] = _milliseconds_since(began)
        graphs, times = {}, []
        for bucket in order:
            began = time.perf_counter()
            device.begin_capture()
            run(bucket)
            graphs[bucket] = device.end_capture()
            times.append(CaptureTime(bucket, first_runs[bucket], _milliseconds_since(began)))
            if captured is not None:
                captured(times[-1])
        return cls(device, graphs, tuple(times))

    def bucket_of(self, rows: int) -> int:
        """The smallest bucket that holds so many rows. Raises ValueError where none does."""
        for bucket in self.buckets:
            if rows <= bucket:
                return bucket
        raise ValueError(f"{rows} rows are more than the largest bucket holds, {self.buckets[-1]}")

    def replay(self, bucket: int) -> None:
        self._device.replay(self._graphs[bucket])


def _milliseconds_since(began: float) -> float:
    return 1e3 * (time.perf_counter() - began)

"""Capture and replay: the order of calls, by a device that records them."""

import pytest

from pllm.runtime.cuda.graphs import BucketGraphs


class RecordingDevice:
    """Keeps the calls; a graph is the list of what ran while it was recorded."""

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.recorded: list[int] | None = None

    def run(self, bucket: int) -> None:
        self.calls.append(f"run {bucket}")
        if self.recorded is not None:
            self.recorded.append(bucket)

    def begin_capture(self) -> None:
        assert self.recorded is None, "one capture at a time"
        self.calls.append("begin")
        self.recorded = []

    def end_capture(self) -> list[int]:
        assert self.recorded is not None
        self.calls.append("end")
        graph, self.recorded = self.recorded, None
        return graph

    def replay(self, graph: list[int]) -> None:
        self.calls.append(f"replay {graph}")

    def synchronize(self) -> None:
        assert self.recorded is None, "waiting breaks a capture"
        self.calls.append("synchronize")


def test_every_bucket_runs_once_and_then_all_are_captured_the_largest_first() -> None:
    device = RecordingDevice()
    graphs = BucketGraphs.capture(device, (1, 8, 2), device.run)
    assert device.calls == [
        "run 8", "synchronize", "run 2", "synchronize", "run 1", "synchronize",
        "begin", "run 8", "end", "begin", "run 2", "end", "begin", "run 1", "end",
    ]  # fmt: skip
    assert [time.bucket for time in graphs.times] == [8, 2, 1]
    assert all(time.first_run_ms >= 0 and time.capture_ms >= 0 for time in graphs.times)
    del device.calls[:]
    graphs.replay(graphs.bucket_of(5))
    graphs.replay(graphs.bucket_of(1))
    assert device.calls == ["replay [8]", "replay [1]"]


def test_a_batch_runs_in_the_smallest_bucket_that_holds_it() -> None:
    device = RecordingDevice()
    graphs = BucketGraphs.capture(device, (1, 2, 4, 8), device.run)
    assert [graphs.bucket_of(rows) for rows in range(1, 9)] == [1, 2, 4, 4, 8, 8, 8, 8]
    with pytest.raises(ValueError, match="9 rows are more than the largest bucket holds, 8"):
        graphs.bucket_of(9)


@pytest.mark.parametrize("buckets", [(), (0, 1)])
def test_buckets_are_numbers_of_rows(buckets: tuple[int, ...]) -> None:
    device = RecordingDevice()
    with pytest.raises(ValueError, match="buckets are numbers of rows"):
        BucketGraphs.capture(device, buckets, device.run)
    assert device.calls == []

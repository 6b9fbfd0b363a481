"""The memory of a GPU, measured and planned over a device that keeps books, with a neighbour or without."""

from collections.abc import Callable

import pytest

from pllm.build.device_memory import DeviceFullError, plan_device_memory
from pllm.runtime.errors import BuildError, DoesNotFitError
from pllm.runtime.memory import MemoryPlan

MIB = 1 << 20
BLOCK = 2 * MIB


class Device:
    """Keeps books. `neighbour(call)` says what somebody else holds when the call begins."""

    def __init__(self, total: int, neighbour: Callable[[str, int], int] | None = None, growth: float = 0.0) -> None:
        self.total = total
        self.neighbour = neighbour or (lambda call, count: 0)
        self.growth = growth  # of the graphs, with the pool: bytes a block
        self.parts = {"runtime": 10 * MIB}
        self.taken_by_others = 0
        self.calls: list[str] = []

    def held(self) -> int:
        return sum(self.parts.values())

    def free(self) -> int:
        return max(0, self.total - self.held() - self.taken_by_others)

    def load_weights(self) -> None:
        self._take("weights", 1000 * MIB)

    def make_pool(self, num_blocks: int) -> None:
        self._take("pool", num_blocks * BLOCK)

    def drop_pool(self) -> None:
        self.parts.pop("pool", None)

    def run_largest_steps(self) -> None:
        self._take("steps", 300 * MIB)

    def capture(self) -> None:
        self._take("graphs", 50 * MIB + int(self.growth * self.parts["pool"] / BLOCK))

    def drop_graphs(self) -> None:
        self.parts.pop("graphs", None)

    def _take(self, part: str, size: int) -> None:
        """An allocator keeps what it had: a part that is there already is not taken again."""
        self.calls.append(part)
        self.taken_by_others = self.neighbour(part, self.calls.count(part))
        if size - self.parts.get(part, 0) > self.free():
            raise DeviceFullError(f"{part} wants {size} bytes")
        self.parts[part] = max(size, self.parts.get(part, 0))


def plan(device: Device, **changes: object) -> MemoryPlan:
    settings = {"kv_block": BLOCK, "block_size": 16, "max_model_len": 320, "max_num_seqs": 4096, "memory": 0.9}
    return plan_device_memory(device, **(settings | changes))  # type: ignore[arg-type]


def test_terms_are_what_was_taken_and_the_pool_is_what_is_left() -> None:
    device = Device(8000 * MIB)
    found = plan(device)
    assert found.ledger.runtime == 10 * MIB
    assert found.ledger.weights == 1000 * MIB
    assert found.ledger.activations == 300 * MIB
    assert found.ledger.graphs == 50 * MIB
    assert found.num_blocks == (7200 - 1360) // 2
    assert device.held() == found.total_bytes <= 0.9 * device.total
    # Over a small pool of one sequence, then over the one that fits, captured anew and run.
    assert device.calls == ["weights", "pool", "steps", "graphs", "pool", "graphs", "steps"]


def test_a_neighbour_that_gives_back_memory_makes_the_pool_larger() -> None:
    there = plan(Device(8000 * MIB, lambda call, count: 2000 * MIB))
    leaving = plan(Device(8000 * MIB, lambda call, count: 2000 * MIB if (call, count) == ("weights", 1) else 0))
    assert there.ledger == leaving.ledger
    assert leaving.num_blocks > there.num_blocks


@pytest.mark.parametrize("late", ["pool", "graphs"])
def test_a_neighbour_that_takes_memory_meanwhile_makes_the_pool_smaller(late: str) -> None:
    """After the plan is made: the pool does not fit, or the graphs over it. (The steps' memory is held by then.)"""
    alone = plan(Device(8000 * MIB)).num_blocks
    there = False

    def neighbour(call: str, count: int) -> int:
        nonlocal there
        there = there or (call, count) == (late, 2)
        return 1500 * MIB if there else 0

    device = Device(8000 * MIB, neighbour)
    found = plan(device)
    assert found.num_blocks < alone
    assert device.held() == found.total_bytes
    assert device.calls.count("pool") == 3


def test_graphs_that_grow_with_the_pool_are_counted_as_they_are() -> None:
    device = Device(8000 * MIB, growth=0.01 * MIB)
    found = plan(device)
    assert found.ledger.graphs > 50 * MIB
    assert device.held() <= found.total_bytes
    assert device.held() <= 0.9 * device.total


def test_what_cannot_hold_one_sequence_is_refused() -> None:
    with pytest.raises(DoesNotFitError, match="full before one sequence of 320 tokens"):
        plan(Device(1100 * MIB))
    with pytest.raises(DoesNotFitError, match="one sequence of 320 tokens does not fit"):
        plan(Device(1405 * MIB))


class Contested(Device):
    """Free until it is asked for."""

    def make_pool(self, num_blocks: int) -> None:
        super().make_pool(num_blocks)
        if self.calls.count("pool") > 1:
            self.drop_pool()
            raise DeviceFullError("somebody was faster")


def test_a_neighbour_without_end_is_an_error_that_says_so() -> None:
    device = Contested(8000 * MIB)
    with pytest.raises(BuildError, match="planned 5 times"):
        plan(device)
    assert device.calls.count("pool") == 6

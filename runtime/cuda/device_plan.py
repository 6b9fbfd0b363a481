"""The pool that fits on a device: the plan is a formula, and is tried out before anybody counts on it.

Others may take memory of the same device at any time. Where they take what the plan counted on, it is made anew, and
the pool is smaller.
"""

from dataclasses import replace
from typing import Protocol

import msgspec

from pllm.runtime.memory import MemoryLedger, MemoryPlan, MemorySetting

__all__ = ["DeviceFullError", "MeasuredDevice", "NoPoolError", "fit_pool"]

_ATTEMPTS = 5
_SMALLER = 0.95
"""Of a pool that did not fit: the next try holds no more than this, even if more is free again by then."""


class DeviceFullError(Exception):
    """The device has less memory than was asked for."""


class NoPoolError(Exception):
    """Others on the device took its memory faster than it could be planned. Says how often that was tried."""


class MeasuredDevice(Protocol):
    """A device that holds one engine. All but `free` and `held` raise DeviceFullError."""

    def free(self) -> int:
        """Bytes that anybody could take now."""

    def held(self) -> int:
        """Bytes that this process holds, what its allocator keeps for the next step included."""

    def load_weights(self) -> None: ...

    def make_pool(self, num_blocks: int) -> None: ...

    def drop_pool(self) -> None:
        """Give the pool back, if there is one."""

    def run_largest_steps(self) -> None:
        """The most new tokens and rows of logits that a step may have, sampled from in every way."""

    def capture(self) -> None:
        """Every bucket, the largest first, into one memory pool."""

    def drop_graphs(self) -> None:
        """Give the graphs back, if there are any."""


def fit_pool(
    device: MeasuredDevice,
    ledger: MemoryLedger,
    *,
    block_size: int,
    max_model_len: int,
    max_num_seqs: int,
    memory: MemorySetting,
) -> MemoryPlan:
    """Solve, and try: on return the device, whose weights are loaded, holds the pool of the plan, and graphs over it.

    The plan's ledger may say more for the graphs than the given one, where they took more. Raises DoesNotFitError where
    not one sequence of max_model_len tokens fits, with the numbers, and NoPoolError.
    """
    smallest = -(-max_model_len // block_size)
    most: int | None = None
    for _ in range(_ATTEMPTS):
        device.drop_graphs()
        device.drop_pool()
        plan = MemoryPlan.solve(
            ledger,
            block_size=block_size,
            max_model_len=max_model_len,
            max_num_seqs=max_num_seqs,
            memory=memory,
            available=device.free() + device.held(),
        )
        if most is not None:
            plan = replace(plan, num_blocks=max(smallest, min(plan.num_blocks, most)))
        try:
            device.make_pool(plan.num_blocks)
            device.capture()
            device.run_largest_steps()
        except DeviceFullError:
            most = int(plan.num_blocks * _SMALLER)
            continue
        excess = device.held() - plan.total_bytes
        if excess <= 0:
            return plan
        # A larger pool made the graphs or the steps take more than over the small one.
        ledger = msgspec.structs.replace(ledger, graphs=ledger.graphs + excess)
    raise NoPoolError(
        f"the memory of the device was planned {_ATTEMPTS} times, and others on it took what the plan counted on"
    )

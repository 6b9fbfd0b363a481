"""The memory ledger of a GPU: every term measured there, the block count solved for, and the whole tried out.

    held                              what it tells
    -------------------------------   -----------------------------
    before anything                   runtime
    + weights                         weights
    + a small KV pool, its bytes known
    + the largest steps have run      activations, the sampler's too
    + every bucket is captured        graphs
    then: the pool that fits, graphs captured anew over it, the largest steps run again

Terms are differences of what this process holds, so that others on the device, who take and give back memory meanwhile,
change only what is free, and with it the number of blocks. Where they take what the plan counted on, it is made anew.
"""

from dataclasses import replace
from typing import Protocol

import msgspec

from pllm.runtime.errors import BuildError, DoesNotFitError
from pllm.runtime.memory import MemoryLedger, MemoryPlan, MemorySetting

__all__ = ["DeviceFullError", "MeasuredDevice", "plan_device_memory"]

_ATTEMPTS = 5
_SMALLER = 0.95
"""Of a pool that did not fit: the next try holds no more than this, even if more is free again by then."""


class DeviceFullError(Exception):
    """The device has less memory than was asked for."""


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


def plan_device_memory(
    device: MeasuredDevice,
    *,
    kv_block: int,
    block_size: int,
    max_model_len: int,
    max_num_seqs: int,
    memory: MemorySetting,
) -> MemoryPlan:
    """Measure, solve, and try: on return the device holds the pool of the plan, and graphs over it.

    kv_block: bytes of a block. Raises DoesNotFitError where not one sequence of max_model_len tokens fits, with the
    numbers, and BuildError where others on the device take its memory faster than it can be planned.
    """
    smallest = -(-max_model_len // block_size)
    try:
        ledger = _measure(device, kv_block, smallest)
    except DeviceFullError as error:
        raise DoesNotFitError(
            f"the device is full before one sequence of {max_model_len} tokens fits: {error}"
        ) from error
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
    raise BuildError(
        f"the memory of the device was planned {_ATTEMPTS} times, and others on it took what the plan counted on: "
        f"build while nobody else uses the device"
    )


def _measure(device: MeasuredDevice, kv_block: int, num_blocks: int) -> MemoryLedger:
    runtime = device.held()
    device.load_weights()
    weights = device.held() - runtime
    device.make_pool(num_blocks)
    before = device.held()
    device.run_largest_steps()
    activations = device.held() - before
    device.capture()
    graphs = device.held() - before - activations
    return MemoryLedger(weights=weights, activations=activations, runtime=runtime, graphs=graphs, kv_block=kv_block)

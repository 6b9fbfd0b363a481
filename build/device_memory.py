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

from pllm.runtime.cuda.device_plan import DeviceFullError, MeasuredDevice, NoPoolError, fit_pool
from pllm.runtime.errors import BuildError, DoesNotFitError
from pllm.runtime.memory import MemoryLedger, MemoryPlan, MemorySetting

__all__ = ["DeviceFullError", "MeasuredDevice", "plan_device_memory"]


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
    try:
        return fit_pool(
            device,
            ledger,
            block_size=block_size,
            max_model_len=max_model_len,
            max_num_seqs=max_num_seqs,
            memory=memory,
        )
    except NoPoolError as error:
        raise BuildError(f"{error}: build while nobody else uses the device") from error


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

"""The accelerator: the device that serving runs on, as far as it is more than torch's tensors.

Everything else of this folder is the same on any device of torch's; tests put a CPU here.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

import torch

from pllm.runtime.cuda.device_plan import DeviceFullError
from pllm.runtime.cuda.graphs import GraphDevice
from pllm.runtime.cuda.torch_graphs import TorchGraphs
from pllm.runtime.gpu import find_gpu

__all__ = ["Accelerator", "CudaAccelerator", "filling", "open_accelerator"]


class Accelerator(Protocol):
    """One device, and this process's part of its memory."""

    @property
    def device(self) -> torch.device: ...

    def free(self) -> int:
        """Bytes that anybody could take now."""

    def held(self) -> int:
        """Bytes that this process holds, what torch's allocator keeps included."""

    def graphs(self) -> GraphDevice[object]:
        """What captures into a memory pool of its own and replays; the calling thread's launches go to its stream."""

    def release(self) -> None:
        """Give back what torch's allocator keeps and nothing uses."""

    def synchronize(self) -> None: ...


class CudaAccelerator:
    """The first GPU that this process may see."""

    def __init__(self) -> None:
        self.device = torch.device("cuda", 0)
        # Products in float32 stay float32: angles of late positions need it.
        torch.backends.cuda.matmul.allow_tf32 = False
        before = find_gpu()
        torch.cuda.init()
        torch.zeros(1, device=self.device)
        free, _ = torch.cuda.mem_get_info(self.device)
        # What the context takes, of which torch's allocator does not know.
        self._context = max(0, (free if before is None else before.free_memory) - free)

    def free(self) -> int:
        return int(torch.cuda.mem_get_info(self.device)[0])

    def held(self) -> int:
        return self._context + int(torch.cuda.memory_reserved(self.device))

    def graphs(self) -> GraphDevice[object]:
        graphs: GraphDevice[object] = TorchGraphs(self.device)  # type: ignore[assignment]  # its graphs are torch's
        return graphs

    def release(self) -> None:
        torch.cuda.synchronize(self.device)
        torch.cuda.empty_cache()

    def synchronize(self) -> None:
        torch.cuda.synchronize(self.device)


def open_accelerator() -> Accelerator:
    """The GPU of this machine; it has been found to be there."""
    return CudaAccelerator()


@contextmanager
def filling() -> Iterator[None]:
    """Within, a device without memory left is a DeviceFullError."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise DeviceFullError(str(error).strip().splitlines()[0]) from error

"""A stand-in for an H100 while programs are compiled for it: what torch and Triton ask of a GPU before they use it.

For torch's CUDA build on a machine without a GPU. Kernels are compiled in full, by Triton and ptxas, and not loaded.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import triton
from torch._dynamo import device_interface
from torch._inductor.fx_passes import joint_graph
from torch._inductor.runtime import triton_helpers
from torch._subclasses import fake_tensor
from triton.backends.compiler import GPUTarget
from triton.compiler import CompiledKernel

__all__ = ["hopper"]

PROPERTIES = SimpleNamespace(
    name="NVIDIA H100", major=9, minor=0, multi_processor_count=132, total_memory=80 << 30, warp_size=32,
    max_threads_per_multi_processor=2048, regs_per_multiprocessor=65536, max_threads_per_block=1024,
    shared_memory_per_block=48 << 10, shared_memory_per_block_optin=227 << 10,
    shared_memory_per_multiprocessor=228 << 10, L2_cache_size=50 << 20,
)  # fmt: skip


class Driver:
    """Triton's, as far as it is asked."""

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", 90, 32)

    def get_current_device(self) -> int:
        return 0

    def get_active_torch_device(self) -> torch.device:
        return torch.device("cuda", 0)


def _unloaded(kernel: Any) -> None:
    kernel.function, kernel.n_regs, kernel.n_spills = 0, 0, 0


@contextmanager
def hopper() -> Iterator[None]:
    """Within, there seems to be one."""
    cuda = device_interface.CudaInterface
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(triton.runtime.driver, "_active", Driver())
        patch.setattr(triton_helpers, "set_driver_to_gpu", lambda: None)
        patch.setattr(CompiledKernel, "_init_handles", _unloaded)
        patch.setattr(CompiledKernel, "run", None)
        patch.setattr(fake_tensor, "init_gpu_context", lambda device: None)
        patch.setattr(joint_graph, "lazy_init", lambda device: None)  # examples of patterns, on a device
        for name, answer in {
            "is_available": True, "device_count": 1, "current_device": 0, "get_device_properties": PROPERTIES,
            "get_device_capability": (9, 0), "_exchange_device": 0, "_maybe_exchange_device": 0, "_lazy_init": None,
            "synchronize": None, "get_rng_state": torch.zeros(1), "set_rng_state": None,
        }.items():  # fmt: skip
            patch.setattr(torch.cuda, name, lambda *given, answer=answer: answer)
        for name, answer in {
            "is_available": True, "get_raw_stream": 0, "current_device": 0, "exchange_device": 0,
            "maybe_exchange_device": 0, "get_compute_capability": 90, "is_triton_capable": True,
            "raise_if_triton_unavailable": None, "get_device_properties": PROPERTIES,
        }.items():  # fmt: skip
            patch.setattr(cuda, name, staticmethod(lambda *given, answer=answer: answer))
        patch.setattr(cuda.Worker, "get_device_properties", staticmethod(lambda *given: PROPERTIES))
        yield

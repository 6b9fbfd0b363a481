"""The GPU, as its driver describes it: asked through the driver's C interface, with no torch and no CUDA toolkit.

So an artifact for another GPU, or a driver that is too old, is refused before anything is loaded.
"""

import ctypes
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

__all__ = ["Gpu", "find_gpu", "version_text"]

_LIBRARY = "libcuda.so.1"
_CAPABILITY_MAJOR, _CAPABILITY_MINOR = 75, 76  # CUdevice_attribute


@dataclass(frozen=True, slots=True)
class Gpu:
    """The first GPU that this process may see."""

    name: str
    """As the driver says it: ``NVIDIA H200``."""
    sm: str
    """Its architecture: ``sm_90``."""
    driver_cuda: int
    """The latest CUDA that the driver runs: 1000 times major plus 10 times minor, 13000 for 13.0."""
    total_memory: int
    """Bytes."""
    free_memory: int
    """Bytes that are free beside this process's own context."""


def find_gpu(load: Callable[[str], Any] = ctypes.CDLL) -> Gpu | None:
    """The first GPU, or None where there is no driver, or no GPU that it could use.

    Which is first, CUDA_VISIBLE_DEVICES decides, as for every CUDA program. Takes a few tenths of a second: what is
    free can only be asked within a context. The context is given back, so nothing of it stays.
    """
    try:
        driver = load(_LIBRARY)
    except OSError:
        return None
    count, device, version = ctypes.c_int(), ctypes.c_int(), ctypes.c_int()
    if (
        driver.cuInit(0)
        or driver.cuDeviceGetCount(ctypes.byref(count))
        or count.value < 1
        or driver.cuDeviceGet(ctypes.byref(device), 0)
        or driver.cuDriverGetVersion(ctypes.byref(version))
    ):
        return None
    name = ctypes.create_string_buffer(256)
    major, minor = ctypes.c_int(), ctypes.c_int()
    if (
        driver.cuDeviceGetName(name, len(name), device)
        or driver.cuDeviceGetAttribute(ctypes.byref(major), _CAPABILITY_MAJOR, device)
        or driver.cuDeviceGetAttribute(ctypes.byref(minor), _CAPABILITY_MINOR, device)
    ):
        return None
    memory = _memory(driver, device)
    if memory is None:
        return None
    free, total = memory
    return Gpu(name.value.decode(errors="replace"), f"sm_{major.value}{minor.value}", version.value, total, free)


def _memory(driver: Any, device: ctypes.c_int) -> tuple[int, int] | None:
    """Bytes free and in all; None where the device takes no context now (in exclusive use, or full)."""
    context, free, total = ctypes.c_void_p(), ctypes.c_size_t(), ctypes.c_size_t()
    if driver.cuDevicePrimaryCtxRetain(ctypes.byref(context), device):
        return None
    try:
        if driver.cuCtxPushCurrent_v2(context):
            return None
        failed = driver.cuMemGetInfo_v2(ctypes.byref(free), ctypes.byref(total))
        driver.cuCtxPopCurrent_v2(ctypes.byref(ctypes.c_void_p()))
        return None if failed else (free.value, total.value)
    finally:
        driver.cuDevicePrimaryCtxRelease_v2(device)


def version_text(cuda: int) -> str:
    """``13.0`` for 13000."""
    return f"{cuda // 1000}.{cuda % 1000 // 10}"

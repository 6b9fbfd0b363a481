"""The KV pool: all keys and values of all layers, one array, reserved once when the engine starts."""

import contextlib
import ctypes
import mmap
import os
import threading
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pllm.kernels.cpu.library import CpuLibrary
from pllm.runtime.errors import DoesNotFitError
from pllm.runtime.manifest import KvInfo
from pllm.runtime.memory import format_bytes

__all__ = ["KvPool"]

_MADV_POPULATE_WRITE = 23  # Linux 5.14; the mmap module does not name it
_PIECE = 2 << 20  # bytes that are taken at a time: meanwhile nobody else in the process can map or unmap
_IDLE = 19  # niceness
_DTYPES: dict[str, Any] = {"float32": np.float32, "bfloat16": np.uint16, "int8": np.int8}


class KvPool:
    """`array` is [num_blocks, *info.block_shape], in float32, bfloat16 (as uint16) or int8."""

    def __init__(self, info: KvInfo, num_blocks: int) -> None:
        """Reserve the memory, and have a thread that yields to all others take it from the system, zeroed.

        Zeroing takes a second for every few gigabytes, and the first requests need only the first blocks: they do not
        wait for it. Raises DoesNotFitError where the memory cannot be reserved.
        """
        size = num_blocks * info.block_bytes
        try:
            self._map = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        except OSError as error:
            raise DoesNotFitError(
                f"the KV pool of {format_bytes(size)} cannot be reserved ({error.strerror}): "
                "give the engine less memory"
            ) from error
        shape = (num_blocks, *info.block_shape)
        self.array: NDArray[Any] = np.frombuffer(self._map, _DTYPES[info.dtype]).reshape(shape)
        with contextlib.suppress(OSError):  # a kernel without huge pages does with small ones
            self._map.madvise(mmap.MADV_HUGEPAGE)
        self._closing = threading.Event()
        self._taking = threading.Thread(target=self._take, args=(self.array.ctypes.data, size), daemon=True)
        self._taking.start()

    def copy_blocks(self, library: CpuLibrary, pairs: Sequence[tuple[int, int]]) -> None:
        """Copy whole blocks, (source, target), one after another."""
        library.copy_blocks(self.array, np.array(pairs, np.int64).reshape(-1, 2))

    def wait_taken(self) -> None:
        """Return when the whole pool has been taken from the system: for measurements."""
        self._taking.join()

    def close(self) -> None:
        """Give the memory back, as soon as no array views it any more."""
        self._closing.set()
        self._taking.join()
        self.array = np.empty(0, self.array.dtype)
        with contextlib.suppress(BufferError):
            self._map.close()

    def _take(self, address: int, size: int) -> None:
        """Through ctypes, which lets other threads run meanwhile. Contents stay; a kernel that does not know how leaves
        the pages to their first use."""
        with contextlib.suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _IDLE)
        madvise = ctypes.CDLL(None).madvise
        madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
        for offset in range(0, size, _PIECE):
            if self._closing.is_set() or madvise(address + offset, min(_PIECE, size - offset), _MADV_POPULATE_WRITE):
                return

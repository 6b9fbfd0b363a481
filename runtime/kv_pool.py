"""The KV pool: all keys and values of all layers, one array, taken from the system once when the engine starts."""

import contextlib
import mmap
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
_DTYPES: dict[str, Any] = {"float32": np.float32, "bfloat16": np.uint16}


class KvPool:
    """`array` is [num_blocks, num_layers, 2, num_kv_heads, block_size, head_dim], float32, or bfloat16 as uint16."""

    def __init__(self, info: KvInfo, num_blocks: int) -> None:
        """Take the memory, zeroed, now: what is not there is found out at the start and not while serving.

        Raises DoesNotFitError.
        """
        size = num_blocks * info.block_bytes
        try:
            self._map = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        except OSError as error:
            raise DoesNotFitError(
                f"the KV pool of {format_bytes(size)} cannot be reserved ({error.strerror}): "
                "give the engine less memory"
            ) from error
        shape = (num_blocks, info.num_layers, 2, info.num_kv_heads, info.block_size, info.head_dim)
        self.array: NDArray[Any] = np.frombuffer(self._map, _DTYPES[info.dtype]).reshape(shape)
        with contextlib.suppress(OSError):  # a kernel without huge pages does with small ones
            self._map.madvise(mmap.MADV_HUGEPAGE)
        try:
            self._map.madvise(_MADV_POPULATE_WRITE)
        except OSError:  # an older kernel
            self.array.fill(0)

    def copy_blocks(self, library: CpuLibrary, pairs: Sequence[tuple[int, int]]) -> None:
        """Copy whole blocks, (source, target), one after another."""
        library.copy_blocks(self.array, np.array(pairs, np.int64).reshape(-1, 2))

    def close(self) -> None:
        """Give the memory back, as soon as no array views it any more."""
        self.array = np.empty(0, self.array.dtype)
        with contextlib.suppress(BufferError):
            self._map.close()

"""The KV pool: reserved whole or refused, and its blocks copied."""

import errno
import os
from collections.abc import Iterator
from contextlib import closing

import numpy as np
import pytest

from pllm.kernels.cpu.library import CpuLibrary, OperatorError
from pllm.runtime.artifact import Artifact
from pllm.runtime.errors import DoesNotFitError
from pllm.runtime.kv_pool import KvPool
from pllm.runtime.manifest import KvInfo

from .artifacts import Built


def info(dtype: str = "float32") -> KvInfo:
    return KvInfo(dtype=dtype, num_layers=2, num_kv_heads=3, block_size=16, head_dim=8)


@pytest.fixture(scope="module")
def library(tiny: Built) -> CpuLibrary:
    artifact = Artifact.read(tiny.artifact)
    return CpuLibrary.open(artifact.path(artifact.manifest.operators[0]))


@pytest.fixture
def pool() -> Iterator[KvPool]:
    with closing(KvPool(info(), 5)) as opened:
        opened.array[...] = np.arange(5, dtype=np.float32).reshape(-1, 1, 1, 1, 1, 1)
        yield opened


def numbers(pool: KvPool) -> list[float]:
    """What each block is full of."""
    assert (pool.array == pool.array[:, :1, :1, :1, :1, :1]).all()
    return pool.array[:, 0, 0, 0, 0, 0].tolist()


@pytest.mark.parametrize(
    ("dtype", "numpy_dtype", "width"), [("float32", np.float32, 8), ("bfloat16", np.uint16, 8), ("int8", np.int8, 12)]
)
def test_it_is_one_array_of_zeros(dtype: str, numpy_dtype: type, width: int) -> None:
    """In int8 with room for a scale, four bytes, beside each key and value."""
    with closing(KvPool(info(dtype), 7)) as pool:
        assert pool.array.shape == (7, 2, 2, 3, 16, width)
        assert pool.array.dtype == numpy_dtype
        assert pool.array.nbytes == 7 * info(dtype).block_bytes
        assert pool.array.flags.c_contiguous
        assert pool.array.flags.writeable
        assert not pool.array.any()


def test_taking_its_memory_changes_nothing_that_was_written_meanwhile() -> None:
    with closing(KvPool(info(), 20_000)) as pool:  # 230 MB
        pool.array[-1] = 3
        pool.wait_taken()
        assert (pool.array[-1] == 3).all()
        assert not pool.array[:-1].any()


def test_what_cannot_be_reserved_is_refused_with_its_size() -> None:
    blocks = (1 << 50) // info().block_bytes  # more than addresses
    with pytest.raises(DoesNotFitError, match=r"KV pool of 1024 TiB cannot be reserved") as caught:
        KvPool(info(), blocks)
    assert os.strerror(errno.ENOMEM) in str(caught.value)
    assert "give the engine less memory" in str(caught.value)
    assert caught.value.exit_code == 4


def test_blocks_are_copied_one_after_another(pool: KvPool, library: CpuLibrary) -> None:
    pool.copy_blocks(library, [(0, 1), (1, 2), (4, 4), (3, 0)])
    assert numbers(pool) == [3, 0, 0, 3, 4]
    pool.copy_blocks(library, [])
    assert numbers(pool) == [3, 0, 0, 3, 4]


@pytest.mark.parametrize("pair", [(0, 5), (5, 0), (-1, 0), (0, -1), (0, 2**40)])
def test_no_block_is_copied_where_one_is_outside(pool: KvPool, library: CpuLibrary, pair: tuple[int, int]) -> None:
    with pytest.raises(OperatorError, match="outside the pool of 5 blocks"):
        pool.copy_blocks(library, [(0, 1), pair])
    assert numbers(pool) == [0, 1, 2, 3, 4]


def test_it_is_closed_once_and_what_views_it_stays() -> None:
    pool = KvPool(info(), 2)
    view = pool.array[1]
    pool.close()
    pool.close()
    assert pool.array.size == 0
    view[...] = 2
    assert (view == 2).all()

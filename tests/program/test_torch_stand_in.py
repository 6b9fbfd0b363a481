"""The operator library's own tensors beside torch's: the same functions, the same answers."""

import ctypes
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pllm.kernels.cpu.library import load_library
from pllm.runtime.artifact import Artifact
from pllm.runtime.program import load_torch

from .artifacts import Built

Sizes = tuple[int, ...]
Call = Any


@dataclass(frozen=True, slots=True)
class Tensors:
    """The functions of one side, by their names without prefix."""

    library: ctypes.CDLL
    prefix: str

    def __getattr__(self, name: str) -> Call:
        return getattr(self.library, self.prefix + name)

    def dtype(self, name: str) -> int:
        return int(getattr(self, f"dtype_{name}")())

    def of_blob(self, data: np.ndarray, sizes: Sizes, strides: Sizes, offset: int, dtype: str) -> int:
        out = ctypes.c_void_p()
        memory = (ctypes.c_void_p(data.ctypes.data), ctypes.c_int64(len(sizes)), _many(sizes), _many(strides))
        place = (ctypes.c_int64(offset), self.dtype(dtype), self.device_type_cpu(), 0)
        assert not self.create_tensor_from_blob(*memory, *place, ctypes.byref(out))
        assert out.value is not None
        return out.value

    def number(self, name: str, handle: int, kind: Any = ctypes.c_int64) -> int:
        out = kind()
        assert not getattr(self, name)(ctypes.c_void_p(handle), ctypes.byref(out))
        return int(out.value or 0)

    def several(self, name: str, handle: int) -> Sizes:
        out = ctypes.POINTER(ctypes.c_int64)()
        assert not getattr(self, name)(ctypes.c_void_p(handle), ctypes.byref(out))
        return tuple(out[i] for i in range(self.number("get_dim", handle)))

    def made(self, name: str, handle: int, *arguments: Any) -> int:
        out = ctypes.c_void_p()
        assert not getattr(self, name)(ctypes.c_void_p(handle), *arguments, ctypes.byref(out))
        assert out.value is not None
        return out.value

    def facts(self, handle: int, base: int) -> tuple[Any, ...]:
        """All that can be asked of a tensor; its address from ``base`` on."""
        numbers = ("get_dim", "get_numel", "get_storage_offset", "get_storage_size")
        return (
            *(self.number(name, handle) for name in numbers),
            self.number("get_dtype", handle, ctypes.c_int32),
            *(self.number(name, handle, ctypes.c_int32) for name in ("get_device_type", "get_device_index")),
            self.several("get_sizes", handle),
            self.several("get_strides", handle),
            self.number("get_data_ptr", handle, ctypes.c_void_p) - (base if self.number("get_numel", handle) else 0),
        )

    def delete(self, handle: int) -> None:
        assert not self.delete_tensor_object(ctypes.c_void_p(handle))


def _many(values: Sizes) -> Any:
    return (ctypes.c_int64 * len(values))(*values)


@pytest.fixture(scope="module")
def sides(tiny: Built) -> tuple[Tensors, Tensors]:
    artifact = Artifact.read(tiny.artifact)
    operators = load_library(artifact.path(artifact.manifest.operators[0]))
    return Tensors(operators, "pllm_tensors_"), Tensors(load_torch(), "aoti_torch_")


NAMES = ("float32", "float64", "float16", "bfloat16", "int64", "int32", "int16", "int8", "uint8", "bool")
BYTES = dict(zip(NAMES, (4, 8, 2, 2, 8, 4, 2, 1, 1, 1), strict=True))


def test_dtypes_are_counted_as_torch_counts_them(sides: tuple[Tensors, Tensors]) -> None:
    ours, torchs = sides
    assert [ours.dtype(name) for name in NAMES] == [torchs.dtype(name) for name in NAMES]
    for name in ("device_type_cpu", "device_type_cuda", "layout_strided"):
        assert getattr(ours, name)() == getattr(torchs, name)()


@given(
    sizes=st.lists(st.integers(0, 4), max_size=5).map(tuple),
    order=st.randoms(use_true_random=False),
    offset=st.integers(0, 3),
    dtype=st.sampled_from(NAMES),
)
def test_a_view_and_what_is_made_of_it(
    sides: tuple[Tensors, Tensors], sizes: Sizes, order: Any, offset: int, dtype: str
) -> None:
    """Over the same memory: a tensor in any order of dimensions, a handle to it, a view of its last element, a copy."""
    strides, step = [0] * len(sizes), 1
    for i in order.sample(range(len(sizes)), len(sizes)):
        strides[i] = step
        step *= max(sizes[i], 1)
    data = np.random.default_rng(step).integers(
        0, 2, (offset + step) * BYTES[dtype], np.uint8
    )  # bytes that bools have too
    found = []
    for side in sides:
        tensor = side.of_blob(data, sizes, tuple(strides), offset, dtype)
        handle = side.made("new_tensor_handle", tensor)
        one, last = _many((1,)), step - 1
        view = side.made("_reinterpret_tensor", tensor, ctypes.c_int64(1), one, one, ctypes.c_int64(last))
        copy = side.made("clone", handle)
        facts = [side.facts(each, data.ctypes.data) for each in (tensor, handle, view)]
        side.delete(tensor)  # the others live on
        facts.append(side.facts(view, data.ctypes.data))
        address = side.number("get_data_ptr", copy, ctypes.c_void_p)
        content = ctypes.string_at(address, step * BYTES[dtype]) if address else b""
        found.append((facts, side.several("get_sizes", copy), side.several("get_strides", copy), content))
        for each in (handle, view, copy):
            side.delete(each)
    assert found[0] == found[1]


@given(sizes=st.lists(st.integers(0, 5), min_size=1, max_size=4).map(tuple))
def test_new_memory(sides: tuple[Tensors, Tensors], sizes: Sizes) -> None:
    strides = tuple(int(np.prod([max(size, 1) for size in sizes[i + 1 :]])) for i in range(len(sizes)))
    found = []
    for side in sides:
        out = ctypes.c_void_p()
        place = (side.dtype("float32"), side.device_type_cpu(), 0)
        assert not side.empty_strided(
            ctypes.c_int64(len(sizes)), _many(sizes), _many(strides), *place, ctypes.byref(out)
        )
        assert out.value is not None
        address = side.number("get_data_ptr", out.value, ctypes.c_void_p)
        assert address % 64 == 0
        if address:
            ctypes.memset(address, 1, 4 * int(np.prod(sizes)))
        found.append(side.facts(out.value, address))
        side.delete(out.value)
    assert found[0] == found[1]


def test_what_it_cannot_be_is_refused(sides: tuple[Tensors, Tensors]) -> None:
    ours, _ = sides
    out, one = ctypes.c_void_p(), _many((1,))
    for dim, dtype, device in ((1, 99, 0), (17, ours.dtype("int8"), 0), (1, ours.dtype("int8"), 1)):
        sizes = _many((1,) * dim)
        assert ours.empty_strided(ctypes.c_int64(dim), sizes, sizes, dtype, device, 0, ctypes.byref(out))
        blob = (ctypes.c_void_p(ctypes.addressof(one)), ctypes.c_int64(dim), sizes, sizes, ctypes.c_int64(0))
        assert ours.create_tensor_from_blob(*blob, dtype, device, 0, ctypes.byref(out))
    assert out.value is None

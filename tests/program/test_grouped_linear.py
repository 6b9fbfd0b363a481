"""The product of token groups with their experts' weights, as a program calls it, against the specification."""

import ctypes
from collections.abc import Callable, Sequence

import numpy as np
import pytest
import torch

from pllm.kernels import reference
from pllm.kernels.packing import pack_linear, packed_shape, unpack_linear
from pllm.runtime.artifact import Artifact
from pllm.runtime.program import _TORCHS, _Tensors, load_torch

from .artifacts import Built

DTYPES = (torch.float32, torch.bfloat16)
NAMES = {torch.float32: "float32", torch.bfloat16: "bfloat16", torch.int32: "int32", torch.int64: "int64"}

Product = Callable[[torch.Tensor, torch.Tensor, torch.Tensor, int], torch.Tensor]


class Refused(Exception):
    pass


@pytest.fixture(scope="module")
def product(tiny: Built) -> Product:
    handles = _Tensors(load_torch(), _TORCHS)
    artifact = Artifact.read(tiny.artifact)
    library = ctypes.CDLL(str(artifact.path(artifact.manifest.operators[0])))
    library.pllm_last_error.restype = ctypes.c_char_p
    call = library.aoti_torch_cpu_packed_grouped_linear
    call.argtypes = (*3 * [ctypes.c_void_p], ctypes.c_int64, ctypes.POINTER(ctypes.c_void_p))

    def run(x: torch.Tensor, weight: torch.Tensor, ends: torch.Tensor, out_features: int) -> torch.Tensor:
        tensors = [handles.tensor(t.data_ptr(), t.shape, NAMES[t.dtype]) for t in (x, weight, ends)]
        out = ctypes.c_void_p()
        failed = call(*tensors, out_features, ctypes.byref(out))
        for handle in tensors:
            handles.delete(handle)
        if failed:
            assert not out.value
            raise Refused(library.pllm_last_error().decode())
        assert out.value is not None
        return torch.from_numpy(np.array(handles.array(out.value)))

    return run


def ends_of(*counts: int) -> torch.Tensor:
    return torch.tensor(np.cumsum(counts), dtype=torch.int32)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("counts", "n", "k"),
    [((1,), 32, 8), ((2, 0, 3, 1), 40, 33), ((0, 0, 7), 100, 64), ((20, 1, 0, 30), 96, 128), ((0, 0), 33, 5)],
)
def test_each_group_has_its_own_weight(
    product: Product, dtype: torch.dtype, counts: Sequence[int], n: int, k: int
) -> None:
    g = torch.Generator().manual_seed(n)
    weight = torch.randn(len(counts), n, k, generator=g).to(dtype)
    x, ends, packed = torch.randn(sum(counts), k, generator=g), ends_of(*counts), pack_linear(weight)
    got = product(x, packed, ends, n)
    torch.testing.assert_close(got, reference.grouped_linear(x, packed, ends, n), rtol=2e-5, atol=2e-5 * k**0.5)
    group = torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts))
    by_hand = torch.einsum("mk,mnk->mn", x, weight.float()[group])
    torch.testing.assert_close(got, by_hand, rtol=2e-5, atol=2e-5 * k**0.5)


@pytest.mark.parametrize("dtype", DTYPES)
def test_experts_are_packed_each_like_a_linear(dtype: torch.dtype) -> None:
    weight = torch.randn(3, 40, 7).to(dtype)
    packed = pack_linear(weight)
    assert packed.shape == packed_shape(3, 40, 7) == (3, 2, 7, 32)
    for one, whole in zip(packed, weight, strict=True):
        assert torch.equal(one, pack_linear(whole))
        assert torch.equal(unpack_linear(one, 40), whole)


@pytest.mark.parametrize(
    ("ends", "said"),
    [
        ([2, 1, 5], "group 1 of 3 ends at row 1 of 5"),
        ([-1, 2, 5], "group 0 of 3 ends at row -1 of 5"),
        ([2, 3, 4], "group 2 of 3 ends at row 4 of 5"),
        ([2, 6, 5], "group 1 of 3 ends at row 6 of 5"),
        ([5, 5], "for 2 groups"),
    ],
)
def test_groups_that_are_none_are_refused(product: Product, ends: list[int], said: str) -> None:
    weight = pack_linear(torch.randn(3, 32, 8))
    with pytest.raises(Refused, match=said):
        product(torch.randn(5, 8), weight, torch.tensor(ends, dtype=torch.int32), 32)


def test_shapes_and_dtypes_that_differ_are_refused(product: Product) -> None:
    x, weight, ends = torch.randn(5, 8), pack_linear(torch.randn(2, 32, 8)), ends_of(2, 3)
    with pytest.raises(Refused, match="groups of 64 rows of 8"):
        product(x, weight, ends, 64)
    with pytest.raises(Refused, match="groups of 32 rows of 7"):
        product(torch.randn(5, 7), weight, ends, 32)
    with pytest.raises(Refused, match="ends has torch's dtype"):
        product(x, weight, ends.long(), 32)
    with pytest.raises(Refused, match="weight has 3 dimensions, not 4"):
        product(x, weight[0], ends, 32)

"""The packed product and the gather of its rows, on every instruction set, against the specification."""

from collections.abc import Callable

import numpy as np
import pytest
import torch

from pllm.kernels import reference
from pllm.kernels.cpu.library import CpuLibrary, OperatorError
from pllm.kernels.packing import pack_linear, packed_shape, unpack_linear

from .arrays import view

DTYPES = (torch.float32, torch.bfloat16)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("n", [1, 31, 32, 100])
def test_packing_is_undone_by_unpacking(dtype: torch.dtype, n: int) -> None:
    weight = torch.randn(n, 7).to(dtype)
    packed = pack_linear(weight)
    assert packed.shape == packed_shape(n, 7)
    assert packed.dtype == dtype
    assert torch.equal(unpack_linear(packed, n), weight)


def test_packed_bfloat16_words_hold_columns_sixteen_apart() -> None:
    weight = torch.arange(64.0).repeat(3, 1).T.contiguous().to(torch.bfloat16)  # [64, 3], a row is its number
    line = pack_linear(weight)[1, 2].float()
    assert line.tolist() == [32 + j // 2 + 16 * (j % 2) for j in range(32)]


def test_packing_refuses_other_dtypes() -> None:
    with pytest.raises(TypeError, match="float16"):
        pack_linear(torch.zeros(2, 2, dtype=torch.float16))


def _problem(seed: int, m: int, n: int, k: int, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    g = torch.Generator().manual_seed(seed)
    weight = (torch.randn(n, k, generator=g) / k**0.5).to(dtype)
    return torch.randn(m, k + 5, generator=g)[:, :k], pack_linear(weight), torch.randn(n, generator=g)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("m", "n", "k"),
    [(m, n, k) for m in range(1, 15) for n, k in ((40, 33), (160, 96))]
    + [(1, 1, 1), (2, 32, 3), (24, 95, 257), (25, 65, 513), (37, 300, 700), (250, 129, 300), (481, 64, 64)],
)
def test_linear_is_the_specification(library: CpuLibrary, dtype: torch.dtype, m: int, n: int, k: int) -> None:
    x, weight, bias = _problem(m * n + k, m, n, k, dtype)
    for b in (None, bias):
        for threads in (1, 2):
            library.set_num_threads(threads)
            room = np.full((m, n + 3), np.nan, np.float32)
            got = library.linear(view(x), view(weight), None if b is None else view(b), n, out=room[:, :n])
            torch.testing.assert_close(torch.from_numpy(got), reference.linear(x, weight, b, n), rtol=2e-5, atol=2e-5)
            assert np.isnan(room[:, n:]).all(), "wrote beyond its columns"


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_row_is_the_same_bits_alone_in_a_batch_and_on_every_isa(
    open_as: Callable[[str], CpuLibrary], dtype: torch.dtype
) -> None:
    x, weight, bias = _problem(3, 300, 130, 700, dtype)
    results = []
    for isa in ("avx2", "avx512"):
        library = open_as(isa)
        for threads in (1, 2):
            library.set_num_threads(threads)
            whole = library.linear(view(x), view(weight), view(bias), 130)
            results.append(whole)
            for m in (1, 2, 5, 8, 12, 13, 16, 24, 25, 100):
                assert np.array_equal(
                    library.linear(view(x[7 : 7 + m]), view(weight), view(bias), 130), whole[7 : 7 + m]
                )
    assert all(np.array_equal(result, results[0]) for result in results)


@pytest.mark.parametrize("dtype", DTYPES)
def test_many_threads_and_few_panels(library: CpuLibrary, dtype: torch.dtype) -> None:
    x, weight, _ = _problem(5, 130, 40, 64, dtype)
    for threads in (3, 5, 8):
        library.set_num_threads(threads)
        got = library.linear(view(x), view(weight), None, 40)
        torch.testing.assert_close(torch.from_numpy(got), reference.linear(x, weight, None, 40), rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize("dtype", DTYPES)
def test_tiling_changes_no_bit(library: CpuLibrary, dtype: torch.dtype) -> None:
    x, weight, bias = _problem(7, 100, 4096, 64, dtype)  # one thread has runs of panels to shorten and to lengthen
    library.set_num_threads(1)
    expected = [library.linear(view(x[:m]), view(weight), view(bias), 4096) for m in (1, 100)]
    try:
        for tiling in ((-4, -4, -4), (4, 4, 4), (1, -1, 2)):
            library.set_tiling(*tiling)
            got = [library.linear(view(x[:m]), view(weight), view(bias), 4096) for m in (1, 100)]
            assert all(np.array_equal(a, b) for a, b in zip(got, expected, strict=True))
        with pytest.raises(OperatorError, match="a tiling of 5 powers of two"):
            library.set_tiling(0, 5, 0)
    finally:
        library.set_tiling(0, 0, 0)
        library.set_num_threads(2)


def test_a_row_of_nan_stays_alone(library: CpuLibrary) -> None:
    x, weight, _ = _problem(6, 20, 64, 64, torch.bfloat16)
    spoilt = x.clone()
    spoilt[3] = torch.nan
    clean, got = library.linear(view(x), view(weight), None, 64), library.linear(view(spoilt), view(weight), None, 64)
    assert np.isnan(got[3]).all()
    assert np.array_equal(np.delete(got, 3, 0), np.delete(clean, 3, 0))


@pytest.mark.parametrize("dtype", DTYPES)
def test_embedding_is_exact(library: CpuLibrary, dtype: torch.dtype) -> None:
    _, weight, _ = _problem(8, 1, 1000, 80, dtype)
    ids = torch.randint(0, 1000, (900,), generator=torch.Generator().manual_seed(1))
    ids[:3] = torch.tensor([0, 999, 992])
    got = library.embedding(view(ids), view(weight), 1000)
    assert torch.equal(torch.from_numpy(got), reference.embedding(ids, weight, 1000))


def test_wrong_arguments_are_refused(library: CpuLibrary) -> None:
    x, weight, bias = _problem(9, 2, 40, 8, torch.bfloat16)
    with pytest.raises(OperatorError, match="packed weight"):
        library.linear(view(x[:, :7]), view(weight), None, 40)
    with pytest.raises(OperatorError, match="packed weight"):
        library.linear(view(x), view(weight), None, 65)
    with pytest.raises(OperatorError, match="bias"):
        library.linear(view(x), view(weight), view(bias[:39]), 40)
    for bad in (-1, 40, 1 << 40):
        with pytest.raises(OperatorError, match=f"id {bad}, outside the vocabulary of 40"):
            library.embedding(np.array([0, bad]), view(weight), 40)
    with pytest.raises(OperatorError, match="threads"):
        library.set_num_threads(0)

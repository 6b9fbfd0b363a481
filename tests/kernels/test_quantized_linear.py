"""int8 weights: rounding, the packed layout, and the product against its specification, on fresh random inputs."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pllm.kernels import reference
from pllm.kernels.cpu.library import CpuLibrary, OperatorError
from pllm.kernels.quantization import (
    dequantize,
    pack_quantized,
    quantize_int8,
    quantized_shape,
    unpack_quantized,
)

SHAPES = [(1, 1, 1), (1, 5, 3), (3, 32, 4), (7, 100, 130), (13, 64, 64), (26, 96, 1000), (40, 33, 17), (5, 4096, 256)]


@given(st.integers(1, 70), st.integers(1, 40))
@settings(max_examples=60, deadline=None)
def test_packing_is_undone(n: int, k: int) -> None:
    rounded = torch.randint(-127, 128, (n, k), dtype=torch.int8)
    packed = pack_quantized(rounded)
    assert packed.shape == quantized_shape(n, k)
    assert torch.equal(unpack_quantized(packed, n, k), rounded)


@given(st.integers(1, 20), st.integers(1, 40), st.floats(1e-6, 1e6))
@settings(max_examples=60, deadline=None)
def test_rounding_is_off_by_half_a_step_at_most(n: int, k: int, size: float) -> None:
    weight = torch.randn(n, k) * size
    weight[0] = 0
    rounded, scale = quantize_int8(weight)
    assert int(rounded.min()) >= -127
    assert torch.all((dequantize(rounded, scale) - weight).abs() <= scale[:, None] * 0.5001)
    assert not rounded[0].any()


@pytest.mark.parametrize("has_bias", [False, True])
@pytest.mark.parametrize(("m", "n", "k"), SHAPES)
def test_the_product_is_its_specification(library: CpuLibrary, m: int, n: int, k: int, has_bias: bool) -> None:
    x = torch.randn(m, k) * torch.logspace(-3, 3, m)[:, None]
    rounded, scale = quantize_int8(torch.randn(n, k))
    packed, bias = pack_quantized(rounded), torch.randn(n) if has_bias else None
    y = library.quantized_linear(x.numpy(), packed.numpy(), scale.numpy(), None if bias is None else bias.numpy())
    expected = reference.quantized_linear(x, packed, scale, bias)
    # The sums are whole numbers and equal; three roundings of float32 follow.
    bound = 4e-7 * ((expected - (bias if has_bias else 0)).abs() + expected.abs()) + 1e-30
    assert torch.all((torch.from_numpy(y) - expected).abs() <= bound)


def test_strided_rows_and_what_lies_beside_the_output(library: CpuLibrary) -> None:
    wide, out = np.random.default_rng().standard_normal((9, 80), np.float32), np.full((9, 90), 7, np.float32)
    rounded, scale = quantize_int8(torch.randn(45, 37))
    packed = pack_quantized(rounded).numpy()
    library.quantized_linear(wide[:, 3:40], packed, scale.numpy(), None, out[:, :45])
    alone = library.quantized_linear(np.ascontiguousarray(wide[:, 3:40]), packed, scale.numpy())
    assert np.array_equal(out[:, :45], alone)
    assert np.all(out[:, 45:] == 7)


@given(st.integers(1, 30), st.integers(0, 10**6))
@settings(max_examples=20, deadline=None)
def test_a_row_has_the_same_bits_in_any_batch(built_libraries: list[CpuLibrary], m: int, seed: int) -> None:
    x = np.random.default_rng(seed).standard_normal((m, 70), np.float32)
    rounded, scale = quantize_int8(torch.randn(130, 70))
    packed = pack_quantized(rounded).numpy()
    results = [library.quantized_linear(x, packed, scale.numpy()) for library in built_libraries]
    assert all(np.array_equal(result, results[0]) for result in results)
    for row in range(m):
        assert np.array_equal(
            built_libraries[0].quantized_linear(x[row : row + 1], packed, scale.numpy())[0], results[0][row]
        )


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_row_that_is_not_finite_spoils_no_other(library: CpuLibrary, value: float) -> None:
    x = np.random.default_rng().standard_normal((6, 50), np.float32)
    rounded, scale = quantize_int8(torch.randn(40, 50))
    packed = pack_quantized(rounded).numpy()
    right = library.quantized_linear(x, packed, scale.numpy())
    x[2, 17] = value
    y = library.quantized_linear(x, packed, scale.numpy())
    assert not np.isfinite(y[2]).any()
    others = np.arange(6) != 2
    assert np.array_equal(y[others], right[others])


def test_a_row_of_zeros_gives_the_bias(library: CpuLibrary) -> None:
    rounded, scale = quantize_int8(torch.randn(40, 50))
    bias = torch.randn(40).numpy()
    y = library.quantized_linear(np.zeros((2, 50), np.float32), pack_quantized(rounded).numpy(), scale.numpy(), bias)
    assert np.array_equal(y, np.stack([bias, bias]))


def test_look_ups_are_rows_of_the_weight(library: CpuLibrary) -> None:
    rounded, scale = quantize_int8(torch.randn(70, 33))
    packed, ids = pack_quantized(rounded), torch.randint(0, 70, (50,))
    rows = library.quantized_embedding(ids.numpy(), packed.numpy(), scale.numpy(), 33)
    assert np.array_equal(rows, dequantize(rounded, scale)[ids].numpy())
    assert torch.equal(reference.quantized_embedding(ids, packed, scale, 33), torch.from_numpy(rows))
    with pytest.raises(OperatorError, match="token 0 has id 70, outside the vocabulary of 70"):
        library.quantized_embedding(np.array([70]), packed.numpy(), scale.numpy(), 33)


def test_wrong_arguments_are_refused(library: CpuLibrary) -> None:
    rounded, scale = quantize_int8(torch.randn(40, 50))
    packed, x = pack_quantized(rounded).numpy(), np.zeros((2, 50), np.float32)
    with pytest.raises(OperatorError, match="a quantised weight of"):
        library.quantized_linear(x[:, :40], packed, scale.numpy())
    with pytest.raises(OperatorError, match="a bias of"):
        library.quantized_linear(x, packed, scale.numpy(), np.zeros(3, np.float32))
    big = np.zeros((2, 16386, 32, 4), np.uint8)
    with pytest.raises(OperatorError, match="1 to 65,536 inputs"):
        library.quantized_linear(np.zeros((1, 65541), np.float32), big, np.ones(40, np.float32))

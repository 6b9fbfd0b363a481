"""int8 and int4 weights: rounding, the packed layouts, and the product against its specification, on random inputs."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pllm.kernels import reference
from pllm.kernels.cpu import rows
from pllm.kernels.cpu.library import CpuLibrary, OperatorError
from pllm.kernels.quantization import (
    alternate_gates,
    dequantize,
    dequantize_int4,
    int4_shape,
    pack_int4,
    pack_int4_scale,
    pack_quantized,
    quantize_int4,
    quantize_int8,
    quantized_shape,
    unpack_int4,
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


@pytest.mark.parametrize("is_int4", [False, True])
@pytest.mark.parametrize(("m", "n", "k"), [(1, 16, 64), (7, 48, 96), (13, 64, 32), (40, 2048, 128)])
def test_a_gated_product_has_the_bits_of_both_operators(
    library: CpuLibrary, m: int, n: int, k: int, is_int4: bool
) -> None:
    """n gates and n ups: one operator makes of a weight in turns what two make of it as it is."""
    x, weight = torch.randn(m, k), torch.randn(2 * n, k)
    rounded, scale = quantize_int4(weight, 32) if is_int4 else quantize_int8(weight)
    pack, narrow = (pack_int4, pack_int4_scale) if is_int4 else (pack_quantized, torch.clone)

    def arrays(order: Callable[[torch.Tensor], torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        return pack(order(rounded)), narrow(order(scale))

    def product(packed: torch.Tensor, scales: torch.Tensor, columns: int, *, gated: bool) -> np.ndarray:
        given = scales.view(torch.uint16).numpy() if is_int4 else scales.numpy()
        return library.quantized_linear(x.numpy(), packed.numpy(), given, None, columns, gated=gated)

    both = rows.silu_mul(library, product(*arrays(torch.clone), 2 * n, gated=False))
    turns = arrays(alternate_gates)
    assert np.array_equal(product(*turns, n, gated=True), both)
    assert torch.allclose(torch.from_numpy(both), reference.quantized_gated_linear(x, *turns, n), rtol=2e-6, atol=1e-6)


def test_what_cannot_be_gated(library: CpuLibrary) -> None:
    packed, x = np.zeros((2, 4, 32, 4), np.uint8), np.zeros((1, 16), np.float32)
    with pytest.raises(OperatorError, match="48 gated outputs: a multiple of 32"):
        library.quantized_linear(x, packed, np.ones(48, np.float32), None, 24, gated=True)


@pytest.mark.parametrize("has_bias", [False, True])
@pytest.mark.parametrize(("m", "n", "k"), SHAPES)
def test_the_product_is_its_specification(library: CpuLibrary, m: int, n: int, k: int, has_bias: bool) -> None:
    x = torch.randn(m, k) * torch.logspace(-3, 3, m)[:, None]
    rounded, scale = quantize_int8(torch.randn(n, k))
    packed, bias = pack_quantized(rounded), torch.randn(n) if has_bias else None
    y = library.quantized_linear(x.numpy(), packed.numpy(), scale.numpy(), None if bias is None else bias.numpy(), n)
    expected = reference.quantized_linear(x, packed, scale, bias, n)
    # The sums are whole numbers and equal; three roundings of float32 follow.
    bound = 4e-7 * ((expected - (bias if has_bias else 0)).abs() + expected.abs()) + 1e-30
    assert torch.all((torch.from_numpy(y) - expected).abs() <= bound)


def test_strided_rows_and_what_lies_beside_the_output(library: CpuLibrary) -> None:
    wide, out = np.random.default_rng().standard_normal((9, 80), np.float32), np.full((9, 90), 7, np.float32)
    rounded, scale = quantize_int8(torch.randn(45, 37))
    packed = pack_quantized(rounded).numpy()
    library.quantized_linear(wide[:, 3:40], packed, scale.numpy(), None, 45, out[:, :45])
    alone = library.quantized_linear(np.ascontiguousarray(wide[:, 3:40]), packed, scale.numpy(), None, 45)
    assert np.array_equal(out[:, :45], alone)
    assert np.all(out[:, 45:] == 7)


@given(st.integers(1, 30), st.integers(0, 10**6))
@settings(max_examples=20, deadline=None)
def test_a_row_has_the_same_bits_in_any_batch(built_libraries: list[CpuLibrary], m: int, seed: int) -> None:
    x = np.random.default_rng(seed).standard_normal((m, 70), np.float32)
    rounded, scale = quantize_int8(torch.randn(130, 70))
    packed = pack_quantized(rounded).numpy()
    results = [library.quantized_linear(x, packed, scale.numpy(), None, 130) for library in built_libraries]
    assert all(np.array_equal(result, results[0]) for result in results)
    for row in range(m):
        assert np.array_equal(
            built_libraries[0].quantized_linear(x[row : row + 1], packed, scale.numpy(), None, 130)[0], results[0][row]
        )


@pytest.mark.parametrize("weights", ["int8", "int4"])
def test_tiling_changes_no_bit(library: CpuLibrary, weights: str) -> None:
    """One thread has runs of panels to shorten and to lengthen."""
    weight = torch.randn(8192, 64)
    if weights == "int8":
        rounded, scale = quantize_int8(weight)
        arrays = pack_quantized(rounded).numpy(), scale.numpy()
    else:
        rounded, scale = quantize_int4(weight, 32)
        arrays = pack_int4(rounded).numpy(), pack_int4_scale(scale).view(torch.int16).numpy().view(np.uint16)
    x = torch.randn(90, 64).numpy()
    library.set_num_threads(1)
    expected = [library.quantized_linear(x[:m], *arrays, None, 8192) for m in (1, 8, 90)]
    try:
        for tiling in ((-4, -4, -4), (4, 4, 4), (1, -1, 2)):
            library.set_tiling(*tiling)
            got = [library.quantized_linear(x[:m], *arrays, None, 8192) for m in (1, 8, 90)]
            assert all(np.array_equal(a, b) for a, b in zip(got, expected, strict=True))
    finally:
        library.set_tiling(0, 0, 0)
        library.set_num_threads(2)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_row_that_is_not_finite_spoils_no_other(library: CpuLibrary, value: float) -> None:
    x = np.random.default_rng().standard_normal((6, 50), np.float32)
    rounded, scale = quantize_int8(torch.randn(40, 50))
    packed = pack_quantized(rounded).numpy()
    right = library.quantized_linear(x, packed, scale.numpy(), None, 40)
    x[2, 17] = value
    y = library.quantized_linear(x, packed, scale.numpy(), None, 40)
    assert not np.isfinite(y[2]).any()
    others = np.arange(6) != 2
    assert np.array_equal(y[others], right[others])


def test_a_row_of_zeros_gives_the_bias(library: CpuLibrary) -> None:
    rounded, scale = quantize_int8(torch.randn(40, 50))
    bias = torch.randn(40).numpy()
    y = library.quantized_linear(
        np.zeros((2, 50), np.float32), pack_quantized(rounded).numpy(), scale.numpy(), bias, 40
    )
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
        library.quantized_linear(x[:, :40], packed, scale.numpy(), None, 40)
    with pytest.raises(OperatorError, match="a bias of"):
        library.quantized_linear(x, packed, scale.numpy(), np.zeros(3, np.float32), 40)
    big = np.zeros((2, 16386, 32, 4), np.uint8)
    with pytest.raises(OperatorError, match="1 to 65,536 inputs"):
        library.quantized_linear(np.zeros((1, 65541), np.float32), big, np.ones(40, np.float32), None, 40)


@given(st.integers(1, 70), st.integers(1, 6), st.sampled_from([8, 16, 32, 64]))
@settings(max_examples=60, deadline=None)
def test_packing_of_int4_is_undone(n: int, groups: int, group: int) -> None:
    rounded = torch.randint(-8, 8, (n, groups * group), dtype=torch.int8)
    scale = torch.rand(n, groups).to(torch.bfloat16)
    packed = pack_int4(rounded)
    assert packed.shape == int4_shape(n, groups * group)
    again, scale_again = unpack_int4(packed, pack_int4_scale(scale), n)
    assert torch.equal(again, rounded)
    assert torch.equal(scale_again, scale)


def test_int4_chooses_scales_no_worse_than_the_plain_one() -> None:
    weight = torch.randn(50, 256)
    weight[3, 32:64] = 0
    rounded, scale = quantize_int4(weight, 32)
    assert int(rounded.min()) >= -8
    assert int(rounded.max()) <= 7
    plain = (weight.unflatten(1, (-1, 32)).abs().amax(2) / 7).to(torch.bfloat16).clamp(min=1e-9)
    whole = (weight.unflatten(1, (-1, 32)) / plain.float()[:, :, None]).round().clamp(-8, 7).flatten(1)
    error = (dequantize_int4(rounded, scale) - weight).square().unflatten(1, (-1, 32)).sum(2)
    plain_error = (dequantize_int4(whole, plain) - weight).square().unflatten(1, (-1, 32)).sum(2)
    assert torch.all(error <= plain_error)
    assert float(error.sum()) < 0.95 * float(plain_error.sum())
    assert not rounded[3, 32:64].any()


@pytest.mark.parametrize("has_bias", [False, True])
@pytest.mark.parametrize("group", [24, 32, 64])
@pytest.mark.parametrize(
    ("m", "n", "groups"), [(1, 5, 1), (3, 32, 2), (7, 100, 3), (13, 64, 1), (30, 97, 4), (2, 4096, 2)]
)
def test_the_int4_product_is_its_specification(
    built_libraries: list[CpuLibrary], m: int, n: int, groups: int, group: int, has_bias: bool
) -> None:
    x = torch.randn(m, groups * group)
    rounded, scale = quantize_int4(torch.randn(n, groups * group), group)
    packed, scales, bias = pack_int4(rounded), pack_int4_scale(scale), torch.randn(n) if has_bias else None
    narrow = scales.view(torch.int16).numpy().view(np.uint16)
    results = [
        library.quantized_linear(x.numpy(), packed.numpy(), narrow, None if bias is None else bias.numpy(), n)
        for library in built_libraries
    ]
    assert all(np.array_equal(result, results[0]) for result in results)
    for row in range(m):
        alone = built_libraries[0].quantized_linear(
            x[row : row + 1].numpy(), packed.numpy(), narrow, None if bias is None else bias.numpy(), n
        )
        assert np.array_equal(alone[0], results[0][row])
    expected = reference.quantized_linear(x, packed, scales, bias, n)
    # Whole sums in a group, then as many roundings as there are groups, of terms no larger than their sizes' sum.
    sizes = x.abs() @ dequantize_int4(rounded, scale).abs().T
    bound = (groups + 3) * 1.2e-7 * (sizes + expected.abs()) + 1e-30
    assert torch.all((torch.from_numpy(results[0]) - expected).abs() <= bound)


def test_wrong_int4_weights_are_refused(library: CpuLibrary) -> None:
    rounded, scale = quantize_int4(torch.randn(40, 64), 32)
    packed = pack_int4(rounded).numpy()
    narrow = pack_int4_scale(scale).view(torch.int16).numpy().view(np.uint16)
    with pytest.raises(OperatorError, match="a quantised weight of"):
        library.quantized_linear(np.zeros((1, 72), np.float32), packed, narrow, None, 40)
    with pytest.raises(OperatorError, match="64 inputs in 3 groups: each must have a multiple of 8"):
        library.quantized_linear(np.zeros((1, 64), np.float32), packed, np.zeros((2, 3, 32), np.uint16), None, 40)
    with pytest.raises(OperatorError, match="int8 weights only"):
        library.quantized_embedding(
            np.array([0]), np.zeros((1, 8, 32, 4), np.uint8), np.zeros((1, 2, 32), np.uint16), 64
        )

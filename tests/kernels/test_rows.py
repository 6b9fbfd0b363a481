"""The operators over rows against their specifications in float64, on random inputs, in every instruction set."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pllm.kernels import reference
from pllm.kernels.cpu import rows
from pllm.kernels.cpu.library import CpuLibrary, OperatorError

SHAPES = [(1, 1), (1, 7), (3, 16), (5, 33), (2, 1024), (40, 896), (130, 257)]
EPS = 1e-6


def strided(*shape: int) -> torch.Tensor:
    """Random rows that are further apart than they are long."""
    return torch.randn(*shape[:-1], shape[-1] + 5)[..., : shape[-1]]


def close(actual: np.ndarray, expected: torch.Tensor) -> None:
    assert actual.shape == tuple(expected.shape)
    scale = expected.abs().amax(-1, keepdim=True).clamp(min=1e-20)
    assert torch.all((torch.from_numpy(actual).double() - expected).abs() <= 2e-6 * scale)


@pytest.mark.parametrize("offset", [0.0, 1.0])
@pytest.mark.parametrize(("m", "n"), SHAPES)
def test_norms_are_their_specification(library: CpuLibrary, m: int, n: int, offset: float) -> None:
    x, residual, weight = strided(m, n) * torch.logspace(-3, 3, m)[:, None], strided(m, n), torch.randn(n)
    expected = reference.rms_normalize(x.double(), weight.double(), EPS, offset)
    close(rows.rms_normalize(library, x.numpy(), weight.numpy(), EPS, offset), expected)
    normed, total = rows.add_rms_norm(library, x.numpy(), residual.numpy(), weight.numpy(), EPS, offset)
    assert torch.equal(torch.from_numpy(total), residual + x)
    close(normed, reference.rms_normalize((residual + x).double(), weight.double(), EPS, offset))


@pytest.mark.parametrize(("m", "n"), SHAPES)
def test_silu_is_its_specification(library: CpuLibrary, m: int, n: int) -> None:
    x = strided(m, 2 * n) * 8
    close(rows.silu_mul(library, x.numpy()), reference.silu_mul(x.double()))


def test_silu_at_the_ends(library: CpuLibrary) -> None:
    gate = np.array([[-1e30, -200.0, -88.5, -20.0, 0.0, 20.0, 200.0, 1e30, np.nan]], np.float32)
    up = np.ones_like(gate)
    found = rows.silu_mul(library, np.concatenate((gate, up), axis=1))[0]
    assert np.all(np.abs(found[:3]) < 1e-5)
    assert np.allclose(found[3:8], [-20 / (1 + np.exp(20.0)), 0, 20, 200, 1e30], rtol=1e-6)
    assert np.isnan(found[8])


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_heads_are_their_specification(built_libraries: list[CpuLibrary], data: st.DataObject) -> None:
    tokens, heads, kv_heads = (data.draw(st.integers(1, high)) for high in (40, 6, 3))
    head_dim = data.draw(st.sampled_from((2, 8, 20, 64, 80, 128, 256)))
    half = data.draw(st.integers(1, head_dim // 2))
    normed, turned = data.draw(st.sampled_from(((True, True), (True, False), (False, True))))
    whole = strided(tokens, (heads + 2 * kv_heads) * head_dim)  # as the merged product of q, k and v gives them
    q, k, _ = (
        part.unflatten(-1, (-1, head_dim)) for part in whole.split([heads * head_dim, *[kv_heads * head_dim] * 2], -1)
    )
    angles = [strided(tokens, half).clamp(-1, 1) if turned else None for _ in range(2)]
    weights = [torch.randn(head_dim) if normed else None for _ in range(2)]
    inputs = (q, k, *angles, *weights)
    expected = reference.norm_rope(*(None if each is None else each.double() for each in inputs), EPS, 1.0)
    arrays = [None if each is None else each.numpy() for each in inputs]
    for library in built_libraries:
        for actual, wanted in zip(rows.norm_rope(library, *arrays, EPS, 1.0), expected, strict=True):
            close(actual, wanted)


def test_a_row_is_the_same_alone_and_in_every_instruction_set(built_libraries: list[CpuLibrary]) -> None:
    x, weight = np.random.default_rng().standard_normal((300, 1000), np.float32), np.ones(1000, np.float32)
    found = [rows.rms_normalize(library, x, weight, EPS, 0.0) for library in built_libraries]
    for other in found[1:]:
        assert np.array_equal(found[0], other)
    for library in built_libraries:
        library.set_num_threads(2)
        for row in (0, 17, 299):
            assert np.array_equal(rows.rms_normalize(library, x[row : row + 1], weight, EPS, 0.0)[0], found[0][row])


def test_what_cannot_be_is_refused(library: CpuLibrary) -> None:
    x = np.ones((2, 1, 600), np.float32)
    with pytest.raises(OperatorError, match="heads before attention"):
        rows.norm_rope(library, x, x, None, None, x[0, 0], x[0, 0], EPS, 0.0)  # heads too long
    with pytest.raises(OperatorError, match="heads before attention"):
        rows.norm_rope(library, x[..., :8], x[..., :8], None, None, None, None, EPS, 0.0)  # nothing to do
    with pytest.raises(OperatorError, match="contiguous"):
        rows.silu_mul(library, x[:, 0, ::2])

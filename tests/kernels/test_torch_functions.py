"""The vector functions that a program brings along in place of Sleef's, beside numpy in more than float64."""

import ctypes
import subprocess
from pathlib import Path

import numpy as np
import pytest

from pllm.kernels.cpu.compile import STAND_IN_FOLDER
from pllm.runtime.machine import Machine

WRAPPER = """
#include "torch_functions.cpp"
#define OVER(name, lanes, suffix, vector, load, store)                       \\
  extern "C" void over_##name(const float* x, float* y, long n) {           \\
    for (long i = 0; i < n; i += lanes) store(y + i, Sleef_##name##f##lanes##_##suffix(load(x + i))); \\
  }
#if defined(__AVX512F__)
#define EACH(name, suffix) OVER(name, 16, suffix, __m512, _mm512_loadu_ps, _mm512_storeu_ps)
#else
#define EACH(name, suffix) OVER(name, 8, suffix, __m256, _mm256_loadu_ps, _mm256_storeu_ps)
#endif
EACH(sin, u35)
EACH(cos, u35)
EACH(tanh, u10)
"""
# As Inductor compiles: the flags that may change what floats come to.
FLAGS = ("-O3", "-ffast-math", "-fno-finite-math-only", "-fno-unsafe-math-optimizations", "-ffp-contract=off")
AVX512 = ("-mavx512f", "-mavx512dq", "-mavx512vl", "-mavx512bw")


@pytest.fixture(scope="module", params=["avx2", "avx512f"])
def functions(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    if request.param not in Machine.this().features:
        pytest.skip(f"this CPU has no {request.param}")
    folder: Path = tmp_path_factory.mktemp(request.param)
    (folder / "over.cpp").write_text(WRAPPER)
    vectors = AVX512 if request.param == "avx512f" else ()
    command = [
        "g++",
        "-c",
        "-std=c++17",
        "-fPIC",
        "-march=x86-64-v3",
        *vectors,
        *FLAGS,
        "-w",
        f"-I{STAND_IN_FOLDER}",
    ]
    subprocess.run([*command, "over.cpp"], cwd=folder, check=True)
    # Linked without these flags, which would set this process to flush denormals; and bound to its own functions, for
    # torch, where a test has loaded it for all to see, has some of the same names.
    subprocess.run(["g++", "-shared", "-Wl,-Bsymbolic", "over.o", "-o", "over.so"], cwd=folder, check=True)
    return ctypes.CDLL(str(folder / "over.so"))


@pytest.mark.parametrize(
    ("name", "largest", "ulps"), [("sin", 50_000.0, 1.0), ("cos", 50_000.0, 1.0), ("tanh", 12.0, 6.0)]
)
def test_a_function(functions: ctypes.CDLL, name: str, largest: float, ulps: float) -> None:
    """Of positions up to 50,000; and of zeros, of either sign."""
    random = np.random.default_rng()
    x = np.concatenate([random.uniform(-largest, largest, 4096), random.uniform(-1, 1, 4080), 8 * [0.0], 8 * [-0.0]])
    x = x.astype(np.float32)
    y = np.empty_like(x)
    getattr(functions, f"over_{name}")(x.ctypes, y.ctypes, ctypes.c_long(len(x)))
    exact = getattr(np, name)(x.astype(np.longdouble))
    step = np.spacing(np.maximum(np.abs(exact), 1e-30).astype(np.float32)).astype(np.longdouble)
    assert np.max(np.abs(y - exact) / step) <= ulps


def test_what_is_no_number_stays_none(functions: ctypes.CDLL) -> None:
    x = np.full(16, np.nan, np.float32)
    x[::2] = np.inf
    for name, of_infinity in (("sin", np.nan), ("cos", np.nan), ("tanh", 1.0)):
        y = np.empty_like(x)
        getattr(functions, f"over_{name}")(x.ctypes, y.ctypes, ctypes.c_long(len(x)))
        np.testing.assert_allclose(y, np.where(np.isnan(x), np.nan, np.float32(of_infinity)), rtol=1e-6)

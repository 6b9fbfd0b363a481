"""What the CPU operator library is made of: one object file per entry, described as data."""

from dataclasses import dataclass

__all__ = ["COMMON_FLAGS", "LINK_FLAGS", "SOURCES", "STAND_IN_HEADERS", "TORCH_STAND_IN", "Source"]


@dataclass(frozen=True, slots=True)
class Source:
    """One translation unit: a file beside this one, the object it makes, and what it needs beyond `COMMON_FLAGS`."""

    file: str
    object: str
    flags: tuple[str, ...] = ()


# No -march=native: the library runs on any x86-64-v3 machine and picks its kernels there.
# No contraction: what is fused is written as fmadd, so that the same source gives the same bits in every template.
COMMON_FLAGS = (
    "-O2",  # -O3 compiles a third longer and is no faster: the loops are vectorised and unrolled by hand
    "-std=c++17",
    "-fPIC",
    "-pthread",
    "-fvisibility=hidden",
    "-fno-exceptions",
    "-fno-rtti",
    "-fno-math-errno",
    "-ffp-contract=off",
    "-Wall",
    "-Wextra",
)
LINK_FLAGS = ("-shared", "-pthread", "-Wl,--build-id=none", "-Wl,-z,defs", "-Wl,-O1")

_AVX2 = ("-DPLLM_ISA=avx2", "-mavx2", "-mfma", "-mf16c")
_AVX512 = (
    "-DPLLM_ISA=avx512",
    *("-mavx2", "-mfma", "-mf16c", "-mavx512f", "-mavx512bw", "-mavx512vl", "-mavx512dq", "-mavx512vnni"),
    "-mprefer-vector-width=512",
    *("-Wno-uninitialized", "-Wno-maybe-uninitialized"),  # false alarms of g++ 12 inside its own immintrin.h
)

SOURCES = (
    Source("dispatch.cpp", "dispatch.o"),
    Source("memory.cpp", "memory.o"),
    Source("torch_tensors.cpp", "torch_tensors.o", ("-DPLLM_TENSORS_PREFIX=pllm_tensors_",)),
    Source("team.cpp", "team.o"),
    Source("shim.cpp", "shim.o"),
    Source("rows_shim.cpp", "rows_shim.o"),
    *(
        Source(f"{name}.cpp", f"{name}_{isa}.o", flags)
        for name in ("linear", "quantized_linear", "attention", "rows", "sampling")
        for isa, flags in (("avx2", _AVX2), ("avx512", _AVX512))
    ),
)

TORCH_STAND_IN = ("torch_tensors.cpp", "torch_functions.cpp")
"""For a program that calls nothing else of torch: compiled with the program's own flags and linked into it."""
STAND_IN_HEADERS = ("torch_tensors.h", "memory.h", "simd.h")

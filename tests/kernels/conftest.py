"""The operator library, compiled once for the session and opened once per instruction set."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from pllm.kernels.cpu.compile import build_library
from pllm.kernels.cpu.library import CpuLibrary, OperatorError

ISAS = ("avx2", "avx512")


@pytest.fixture(scope="session")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The library; its object files lie in objects/ beside it."""
    folder = tmp_path_factory.mktemp("operators")
    return build_library(folder / "libpllm_ops.so", objects=folder / "objects")


@pytest.fixture(scope="session")
def open_as(built: Path) -> Callable[[str], CpuLibrary]:
    """Opens the library with an instruction set forced: the choice is made once per loaded file, so each has a copy."""
    opened: dict[str, CpuLibrary] = {}

    def open_library(isa: str) -> CpuLibrary:
        if isa not in opened:
            copy = built.with_name(f"{isa}.so")
            shutil.copy(built, copy)
            with pytest.MonkeyPatch.context() as patch:
                patch.setenv("PLLM_CPU_ISA", isa)
                try:
                    opened[isa] = CpuLibrary.open(copy)
                except OperatorError as error:
                    if "this CPU has no" not in str(error):
                        raise
                    pytest.skip(str(error))
        return opened[isa]

    return open_library


@pytest.fixture(params=ISAS)
def library(request: pytest.FixtureRequest, open_as: Callable[[str], CpuLibrary]) -> CpuLibrary:
    """The library, once per instruction set, on two threads."""
    opened = open_as(request.param)
    opened.set_num_threads(2)
    return opened


@pytest.fixture(scope="session")
def built_libraries(open_as: Callable[[str], CpuLibrary]) -> list[CpuLibrary]:
    """The library in every instruction set that this CPU has, the first the widest."""
    found = []
    for isa in reversed(ISAS):
        try:
            found.append(open_as(isa))
        except pytest.skip.Exception:
            continue
    return found

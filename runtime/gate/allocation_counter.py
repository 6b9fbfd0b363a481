"""The counter of allocations: a few lines of C before the C library, compiled for the process that counts."""

import ctypes
import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

from pllm.runtime.errors import MeasurementError

__all__ = ["build_counter", "counting_environment", "opened_counter"]

_SOURCE = Path(__file__).with_name("allocations.c")


def build_counter(folder: Path) -> Path | None:
    """The compiled counter, in ``folder``; None where there is no C compiler.

    Raises MeasurementError where the compiler refuses it: a C library without glibc's names.
    """
    compiler = next(filter(None, map(shutil.which, ("gcc", "cc", "g++"))), None)
    if compiler is None:
        return None
    library = folder / "allocations.so"
    # As C, whatever the compiler is called; no-builtin, or it would take malloc's place for known.
    flags = ["-x", "c", "-O1", "-fPIC", "-shared", "-fno-builtin"]
    done = subprocess.run([compiler, *flags, str(_SOURCE), "-o", str(library)], capture_output=True, check=False)
    if done.returncode:
        raise MeasurementError(f"the counter of allocations does not compile: {done.stderr.decode(errors='replace')}")
    return library


def counting_environment(library: Path) -> dict[str, str]:
    """The environment of a process that is to count its allocations; it cannot begin later."""
    return {**os.environ, "LD_PRELOAD": str(library), "PYTHONMALLOC": "malloc"}


def opened_counter() -> Callable[[], int]:
    """In such a process: how many allocations there have been, of Python and of all libraries."""
    function = ctypes.CDLL(None).pllm_allocations
    function.argtypes, function.restype = (), ctypes.c_longlong
    counted: Callable[[], int] = function
    return counted

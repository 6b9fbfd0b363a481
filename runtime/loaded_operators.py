"""The operators that this process has: a program finds them by their names, and so the first that were loaded.

A second artifact whose operator library is another one would get the first one's code. It is refused instead.
"""

import ctypes
import filecmp
from collections.abc import Sequence
from pathlib import Path

from pllm.runtime.errors import ArtifactMismatchError

__all__ = ["loaded_operators", "refuse_other_operators"]

_SYMBOL = "pllm_abi_version"
"""Every operator library exports it."""


class _SymbolInfo(ctypes.Structure):
    """``Dl_info`` of dlfcn.h."""

    _fields_ = [
        ("file", ctypes.c_char_p),
        ("base", ctypes.c_void_p),
        ("name", ctypes.c_char_p),
        ("address", ctypes.c_void_p),
    ]


def loaded_operators() -> Path | None:
    """The operator library whose names every program of this process sees; None before one was opened."""
    process = ctypes.CDLL(None)
    try:
        function = getattr(process, _SYMBOL)
    except AttributeError:
        return None
    info = _SymbolInfo()
    if not process.dladdr(ctypes.cast(function, ctypes.c_void_p), ctypes.byref(info)) or info.file is None:
        return None
    return Path(info.file.decode(errors="surrogateescape"))


def refuse_other_operators(libraries: Sequence[Path]) -> None:
    """Raises ArtifactMismatchError where this process has an operator library that is none of these, byte by byte.

    One whose file has gone meanwhile cannot be compared, and is taken for the same.
    """
    present = loaded_operators()
    if present is None or not present.exists():
        return
    if not any(filecmp.cmp(present, library, shallow=False) for library in libraries):
        raise ArtifactMismatchError(
            f"{libraries[0]} cannot be loaded: this process has the operators of {present.resolve()} already, which "
            "are others. Open one artifact in a process, or build both with the same pllm."
        )

"""Builds the CPU operator library with the machine's C++ compiler. Called by `pllm build` and by the tests."""

import errno
import os
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from pathlib import Path

from pllm.kernels.cpu.sources import COMMON_FLAGS, LINK_FLAGS, SOURCES, Source

__all__ = ["STAND_IN_FOLDER", "CompilerError", "build_library", "refuse_full_disk"]

_HERE = Path(__file__).resolve().parent
STAND_IN_FOLDER = _HERE
"""Where the sources of `TORCH_STAND_IN` are."""


class CompilerError(Exception):
    """The compiler is missing or refused the sources; the message names it, its complaint and the remedy."""


def build_library(
    out: Path,
    compiler: str = "g++",
    *,
    sources: Sequence[Source] = SOURCES,
    flags: Sequence[str] = (),
    objects: Path | None = None,
    torch_include: Path | None = None,
) -> Path:
    """Compile `sources` into the shared library `out` and return it.

    The same compiler and sources give the same bytes wherever the checkout or `out` lies: no path and no time gets
    into the library. `flags` are added to every compilation and to the link (sanitizers). `objects`: a folder in which
    to leave the object files. `torch_include`: the folder of torch's C headers; None: the installed torch's.
    The library appears at `out` whole or not at all.

    Raises:
        CompilerError: no such compiler, no headers of torch, or the compiler failed.
        OSError: the disk takes no more.
    """
    found = shutil.which(compiler)
    if found is None:
        raise CompilerError(f"no C++ compiler {compiler!r} on the PATH: install g++ (Debian: apt install g++)")
    headers = _installed_headers() if torch_include is None else torch_include
    out = out.absolute()  # the compiler runs elsewhere
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=".ops-") as scratch:
        folder = Path(scratch) if objects is None else objects
        folder.mkdir(parents=True, exist_ok=True)

        maps = (f"-ffile-prefix-map={_HERE}=.", f"-ffile-prefix-map={headers}=torch")
        common = (found, *COMMON_FLAGS, *maps, "-isystem", str(headers), *flags)

        def compile_one(source: Source) -> str:
            _run([*common, *source.flags, "-c", source.file, "-o", str(folder / source.object)])
            return source.object

        with ThreadPoolExecutor(max_workers=os.cpu_count() or 1) as pool:
            made = list(pool.map(compile_one, sources))
        library = Path(scratch) / "library.so"
        # Objects by bare name, so that the order and the names in the library do not depend on where they were built.
        _run([found, *made, *LINK_FLAGS, f"-Wl,-soname,{out.name}", *flags, "-o", str(library)], cwd=folder)
        library.replace(out)
    return out


def _installed_headers() -> Path:
    """Found without importing torch, which takes seconds."""
    torch = find_spec("torch")
    if torch is None or torch.origin is None:
        raise CompilerError("torch is not installed, and its C headers are needed: pip install torch")
    return Path(torch.origin).parent / "include"


def _run(command: list[str], cwd: Path = _HERE) -> None:
    done = subprocess.run(
        command, cwd=cwd, capture_output=True, text=True, check=False, env={**os.environ, "LC_ALL": "C"}
    )
    if done.returncode:
        refuse_full_disk(done.stderr)
        complaint = "\n".join((done.stderr or done.stdout).strip().splitlines()[:20])
        raise CompilerError(
            f"{command[0]} failed with status {done.returncode}; a g++ of 11 or newer is needed.\n"
            f"command: {' '.join(command)}\n{complaint}"
        )


def refuse_full_disk(complaint: str) -> None:
    """Raises the OSError that a compiler or its linker, run in the C locale, has written down as text, if any: then
    neither is to blame."""
    for code in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        if os.strerror(code) in complaint:
            raise OSError(code, os.strerror(code))

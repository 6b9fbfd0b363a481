"""Two artifacts in one process: only where they have the same operators."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = """
import ctypes, sys
from pathlib import Path
from pllm.kernels.cpu.library import load_library
from pllm.runtime.errors import ArtifactMismatchError
from pllm.runtime.loaded_operators import loaded_operators, refuse_other_operators

first, same, other = map(Path, sys.argv[1:])
assert loaded_operators() is None
refuse_other_operators([other])
load_library(other)  # for itself alone: no program sees its names
assert loaded_operators() is None
load_library(first, ctypes.RTLD_GLOBAL)
assert loaded_operators().samefile(first)
refuse_other_operators([first])
refuse_other_operators([same])
try:
    refuse_other_operators([other])
except ArtifactMismatchError as error:
    print(error)
first.unlink()
refuse_other_operators([other])
"""


def test_other_operators_are_refused(tmp_path: Path) -> None:
    compiler = shutil.which("gcc") or shutil.which("g++")
    if compiler is None:
        pytest.skip("no C compiler")
    paths = [tmp_path / name / "libpllm_ops.so" for name in ("first", "same", "other")]
    for path, version in zip(paths, (1, 1, 2), strict=True):
        path.parent.mkdir()
        source = path.with_name("ops.c")
        source.write_text(f"int pllm_abi_version(void) {{ return {version}; }}")
        subprocess.run([compiler, "-shared", "-fPIC", "-o", path, source.name], check=True, cwd=path.parent)
    words = [sys.executable, "-P", "-c", SCRIPT, *map(str, paths)]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "other/libpllm_ops.so cannot be loaded" in done.stdout
    assert "first/libpllm_ops.so already" in done.stdout

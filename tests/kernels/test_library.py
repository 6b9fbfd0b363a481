"""The operator library as a file: how it is built, what may be in it, and how it refuses."""

import errno
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from pllm.kernels import reference
from pllm.kernels.cpu import compile as compile_module
from pllm.kernels.cpu.compile import CompilerError, build_library
from pllm.kernels.cpu.library import CpuLibrary, OperatorError, load_library
from pllm.kernels.cpu.sources import SOURCES
from pllm.kernels.registry import OPERATORS

LAYOUT = """
#include <cstdio>
#include "api.h"
int main() { printf("%zu %zu %zu\\n", sizeof(PllmPagedAttention), offsetof(PllmPagedAttention, tokens),
                    offsetof(PllmPagedAttention, softcap)); }
"""


def test_code_of_one_instruction_set_cannot_be_shared_with_another(built: Path) -> None:
    """A weak symbol exists once after linking: an AVX-512 copy could run on a CPU without it (kernels.h)."""
    if shutil.which("nm") is None:
        pytest.skip("binutils' nm is not installed")
    objects = [*(built.parent / "objects").glob("*_avx*.o")]
    assert len(objects) == sum("_avx" in source.object for source in SOURCES)
    listing = subprocess.run(["nm", "-A", *objects], capture_output=True, text=True, check=True).stdout
    assert re.search(r" T .*avx512.*linear", listing)
    assert not re.findall(r".* [WVu] .*", listing)


def test_no_path_gets_into_the_library(built: Path) -> None:
    content = built.read_bytes()
    assert b"linear" in content
    for path in (str(Path(compile_module.__file__).parent), str(built.parent), str(Path.home()) + "/"):
        assert path.encode() not in content


@pytest.mark.nightly
def test_the_same_sources_give_the_same_bytes(built: Path, tmp_path: Path) -> None:
    assert build_library(tmp_path / "deep" / "er" / built.name).read_bytes() == built.read_bytes()


def test_a_missing_compiler_is_named_with_the_remedy(tmp_path: Path) -> None:
    with pytest.raises(CompilerError, match=r"no C\+\+ compiler 'no-such-g\+\+'.*apt install g\+\+"):
        build_library(tmp_path / "x.so", "no-such-g++")
    assert list(tmp_path.iterdir()) == []


def test_a_failing_compiler_is_quoted_and_leaves_nothing(tmp_path: Path) -> None:
    compiler = tmp_path / "c++"
    compiler.write_text("#!/bin/sh\necho 'linear.cpp:1: out of vectors' >&2\nexit 3\n")
    compiler.chmod(0o755)
    out = tmp_path / "out"
    with pytest.raises(CompilerError, match=r"(?s)status 3.*g\+\+ of 11.*out of vectors"):
        build_library(out / "x.so", str(compiler))
    assert list(out.iterdir()) == []


def test_a_full_disk_is_not_the_compiler_s_fault(tmp_path: Path) -> None:
    compiler = tmp_path / "c++"
    compiler.write_text("#!/bin/sh\necho '/usr/bin/ld: final link failed: No space left on device' >&2\nexit 1\n")
    compiler.chmod(0o755)
    with pytest.raises(OSError, match="No space left on device") as caught:
        build_library(tmp_path / "out" / "x.so", str(compiler))
    assert caught.value.errno == errno.ENOSPC
    assert list((tmp_path / "out").iterdir()) == []


@pytest.mark.parametrize(("wish", "match"), [("sse9", "PLLM_CPU_ISA=sse9 is unknown: use avx2 or avx512")])
def test_an_unknown_instruction_set_is_refused(
    built: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, wish: str, match: str
) -> None:
    copy = shutil.copy(built, tmp_path / "copy.so")
    monkeypatch.setenv("PLLM_CPU_ISA", wish)
    with pytest.raises(OperatorError, match=match):
        CpuLibrary.open(copy)


def test_the_instruction_set_is_what_was_asked_for(library: CpuLibrary, request: pytest.FixtureRequest) -> None:
    assert library.isa == request.node.callspec.params["library"]
    assert library.num_threads == 2


def test_a_foreign_library_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x.so").write_bytes(b"not a library")
    with pytest.raises(OperatorError, match=r"x\.so is no operator library"):
        CpuLibrary.open(tmp_path / "x.so")


def test_the_python_structure_is_the_c_one(tmp_path: Path) -> None:
    from pllm.kernels.cpu.library import _PagedAttention

    source = tmp_path / "layout.cpp"
    source.write_text(LAYOUT)
    here = Path(compile_module.__file__).parent
    subprocess.run(["g++", f"-I{here}", str(source), "-o", str(tmp_path / "layout")], check=True)
    sizes = subprocess.run([tmp_path / "layout"], capture_output=True, text=True, check=True).stdout.split()
    import ctypes

    mine = (ctypes.sizeof(_PagedAttention), _PagedAttention.tokens.offset, _PagedAttention.softcap.offset)
    assert tuple(map(int, sizes)) == mine


def test_the_registry_names_what_exists(built: Path) -> None:
    import ctypes

    handle = ctypes.CDLL(str(built))
    for name, operator in OPERATORS.items():
        assert operator.name == name
        assert operator.schema.startswith(f"{name}(")
        assert callable(getattr(reference, operator.reference))
        assert operator.implementations
        if "cpu" in operator.implementations:
            assert getattr(handle, operator.implementations["cpu"])


def test_the_binding_and_the_registry_import_no_torch() -> None:
    code = (
        "import sys, pllm.kernels.registry, pllm.kernels.cpu.library, pllm.kernels.cpu.compile; "
        "sys.exit('torch' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, env={**os.environ, "PYTHONPATH": ""})


def test_a_library_built_again_at_its_place_is_the_new_one(tmp_path: Path) -> None:
    path, source = tmp_path / "answer.so", tmp_path / "answer.c"
    answers = []
    for number in (1, 2):
        source.write_text(f"int answer(void) {{ return {number}; }}\n")
        new = tmp_path / "new.so"
        subprocess.run(["g++", "-x", "c", "-shared", "-fPIC", str(source), "-o", str(new)], check=True)
        new.replace(path)
        answers += [load_library(path).answer(), load_library(path).answer()]
    assert answers == [1, 1, 2, 2]

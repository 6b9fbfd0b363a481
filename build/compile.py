"""Compile: the rewritten graph through AOTInductor to a shared library. The one file that imports torch._inductor.

Inductor writes C++; we compile it ourselves. So the flags are ours to choose and to record, the same graph gives the
same bytes, and no path of the build machine gets into what is shipped.
"""

import json
import os
import re
import shutil
import subprocess
import tempfile
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import msgspec
import torch
from torch._inductor import aot_compile
from torch._inductor.codegen.cpp_wrapper_cpu import CppWrapperCpu

from pllm.build.export import DIMS, program_inputs
from pllm.build.graph_record import record
from pllm.build.pipeline import Build
from pllm.build.progress import StageProgress
from pllm.build.traced import Traced, value
from pllm.kernels.cpu.abi import ABI_VERSION
from pllm.kernels.cpu.compile import STAND_IN_FOLDER, CompilerError, build_library, refuse_full_disk
from pllm.kernels.cpu.sources import STAND_IN_HEADERS, TORCH_STAND_IN
from pllm.runtime.errors import BuildError
from pllm.runtime.graphs import GRAPHS, Graphs, ProgramGraph
from pllm.runtime.machine import Machine
from pllm.runtime.manifest import Constant, ProgramInfo, Requires, TensorInfo

__all__ = ["OPERATORS_LIBRARY", "compile_graph", "compile_programs", "operator_library"]

OPERATORS_LIBRARY = "ops/libpllm_ops.so"
_PROGRAM = "programs/main/model.so"
_TORCH_INCLUDE = Path(torch.__file__).parent / "include"
_HANDLE = "AtenTensorHandle"

_X86_64_V3 = ("avx", "avx2", "bmi1", "bmi2", "f16c", "fma", "movbe", "abm")
"""By the names of /proc/cpuinfo: what ``-march=x86-64-v3`` takes for granted beyond v2."""
_CPUINFO = {"avx512vnni": "avx512_vnni", "avx512bf16": "avx512_bf16"}
_LEFT_OUT = frozenset(("march=native", "g1", "Wall", "pedantic", "fno-omit-frame-pointer"))

_C_SHIMS = {
    "packed_linear": f"{_HANDLE} x, {_HANDLE} weight, {_HANDLE}* bias, int64_t out_features",
    "packed_grouped_linear": f"{_HANDLE} x, {_HANDLE} weight, {_HANDLE} ends, int64_t out_features",
    "quantized_linear": (f"{_HANDLE} x, {_HANDLE} weight, {_HANDLE} scale, {_HANDLE}* bias, int64_t out_features"),
    "quantized_gated_linear": f"{_HANDLE} x, {_HANDLE} weight, {_HANDLE} scale, int64_t out_features",
    "quantized_embedding": f"{_HANDLE} ids, {_HANDLE} weight, {_HANDLE} scale, int64_t embedding_dim",
    "packed_embedding": f"{_HANDLE} ids, {_HANDLE} weight, int64_t num_embeddings",
    "rms_normalize": f"{_HANDLE} x, {_HANDLE} weight, double eps, double weight_offset",
    "add_rms_norm": f"{_HANDLE} x, {_HANDLE} residual, {_HANDLE} weight, double eps, double weight_offset",
    "silu_mul": f"{_HANDLE} gate_up",
    "norm_rope": (
        f"{_HANDLE} q, {_HANDLE} k, {_HANDLE}* cos, {_HANDLE}* sin, {_HANDLE}* q_weight, {_HANDLE}* k_weight, "
        "double eps, double weight_offset"
    ),
    "paged_attention": (
        f"{_HANDLE} q, {_HANDLE} k, {_HANDLE} v, {_HANDLE} kv, {_HANDLE} block_table, {_HANDLE} query_start, "
        f"{_HANDLE} context_len, {_HANDLE}* sinks, int64_t layer, double scale, int64_t sliding_window, double softcap"
    ),
}
"""The operators' arguments in AOTInductor's C interface, as `kernels/cpu/shim.cpp` and `rows_shim.cpp` define them."""


def compile_programs(build: Build, progress: StageProgress) -> None:
    """One program for the CPU: tokens, sequences and blocks are dynamic. Raises BuildError where a compiler fails."""
    traced: Traced = build.exported
    operators = operator_library(build.staging.path(OPERATORS_LIBRARY))
    progress.say(f"operators: {OPERATORS_LIBRARY}")
    isa, calls_torch, graph = compile_graph(traced, build.staging.path(_PROGRAM), operators)
    document = msgspec.json.format(msgspec.json.encode(Graphs({"main": graph})), indent=1) + b"\n"
    build.staging.path(GRAPHS).write_bytes(document)
    names = traced.names()
    shapes = {node.name: value(node).shape for node in traced.graph.nodes if node.name in names}
    build.operators = (OPERATORS_LIBRARY,)
    build.programs = (
        ProgramInfo(
            name="main",
            file=_PROGRAM,
            dims=DIMS,
            inputs=program_inputs(build.kv),
            outputs=(TensorInfo(name="logits", dtype="float32", shape=("rows", build.model.vocab_size)),),
            constants=tuple(
                Constant(name=name, weight=name, shape=tuple(map(int, shapes[node]))) for node, name in names.items()
            ),
            calls_torch=calls_torch,
        ),
    )
    here = Machine.this()
    installed = here.torch or torch.__version__.split("+")[0]
    build.requires = Requires(
        torch=installed if calls_torch else None,
        device="cpu",
        machine=here.architecture,
        isa=isa,
        glibc=here.glibc or "",
        operators=ABI_VERSION,
    )
    progress.say(
        f"program main: {sum(graph.nodes.values())} nodes, {sum(graph.kernels.values())} kernels a step, "
        f"{len(names)} constants, {', '.join(isa)}, {'calls torch' if calls_torch else 'runs without torch'}"
    )


def operator_library(out: Path) -> Path:
    """Build the operators as a compiled program calls them, against the headers of the installed torch."""
    try:
        return build_library(out, torch_include=_TORCH_INCLUDE)
    except CompilerError as error:
        raise BuildError(str(error)) from error


def compile_graph(traced: Traced, out: Path, operators: Path) -> tuple[tuple[str, ...], bool, ProgramGraph]:
    """Compile to the shared library ``out``, which calls ``operators``; the CPU features that it needs, by the names of
    ``/proc/cpuinfo``, whether it calls torch, and the record of what was compiled."""
    shims = {}
    for name, arguments in _C_SHIMS.items():
        operator = getattr(torch.ops.pllm, name).default
        results = ", ".join(f"{_HANDLE}* ret{i}" for i in range(len(operator._schema.returns)))
        shims[operator] = [f"AOTITorchError aoti_torch_cpu_{name}({arguments}, {results})"]
    options: dict[str, Any] = {
        "aot_inductor.package": True,
        "aot_inductor.package_constants_in_so": False,
        "aot_inductor.package_cpp_only": True,
        "aot_inductor.model_name_for_generated_files": "model",
        "aot_inductor.custom_ops_to_c_shims": shims,
        # Else Inductor writes small constants into the code, and the traced model has no values to be written.
        "always_keep_tensor_constants": True,
        "joint_graph_constant_folding": False,
        # What Inductor writes is the cheap part of a step: it runs in the calling thread, the operators have their own.
        "cpp.threads": 1,
        "cpp.dynamic_threads": False,
    }
    out = out.absolute()  # the compiler runs elsewhere
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=".aoti-") as scratch:
        # Not in Inductor's cache: that goes by the graph's code alone, and what is there is kept, whatever was written
        # for other options or constants.
        options["aot_inductor.output_path"] = scratch
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", FutureWarning)  # torch's own, of its own classes
                warnings.filterwarnings("ignore", "Can't find Python.h")  # nothing that is compiled includes it
                sources = _write_sources(traced, options)
        except Exception as error:
            lines = str(error).strip().splitlines()
            raise BuildError(f"AOTInductor cannot compile this graph: {lines[0] if lines else error!r}") from error
        graph = record(traced.graph, (Path(scratch) / "model.wrapper.cpp").read_text(encoding="utf-8").splitlines())
        isa, calls_torch = _compile_sources(Path(scratch), sources, out, operators.absolute())
        return isa, calls_torch, graph


def _write_sources(traced: Traced, options: dict[str, Any]) -> list[Path]:
    """Let Inductor write its C++; the files that make the library."""
    assert traced.program.example_inputs is not None, "an exported program has its example inputs"
    args, kwargs = traced.program.example_inputs
    with _arrays_by_writer():
        written: Any = aot_compile(traced.program.module(check_guards=False), args, kwargs, options=options)
    # What has no function in torch's C interface would be called through a proxy that the runtime does not have.
    proxied = Path(options["aot_inductor.output_path"], "model.wrapper.json")
    if proxied.is_file():
        nodes = json.loads(proxied.read_text(encoding="utf-8"))["nodes"]
        raise BuildError(f"no kernel for {', '.join(sorted({node['node']['target'] for node in nodes}))}")
    return [path for path in map(Path, map(str, written)) if path.suffix in (".cpp", ".o")]


@contextmanager
def _arrays_by_writer() -> Iterator[None]:
    """Same graph, same C++: torch 2.11 knows an array that it wrote again by the address of the bound method that wrote
    it, which a later one may have or not. So the first such method of each object is kept, and stands for the others:
    by the wrapper that writes, so that two threads that build, and leave this in any order, keep nothing of each other.
    """
    original = CppWrapperCpu.codegen_int_array_var

    def codegen(self: CppWrapperCpu, int_array: str, writeline: Callable[..., None], *args: Any, **kwargs: Any) -> str:
        writers: dict[int, Callable[..., None]] = vars(self).setdefault("pllm_writers", {})
        owner = getattr(writeline, "__self__", writeline)
        return original(self, int_array, writers.setdefault(id(owner), writeline), *args, **kwargs)

    with patch.object(CppWrapperCpu, "codegen_int_array_var", codegen):
        yield


def _compile_sources(folder: Path, sources: Sequence[Path], out: Path, operators: Path) -> tuple[tuple[str, ...], bool]:
    flags = json.loads((folder / "model.wrapper_compile_flags.json").read_text(encoding="utf-8"))
    vector = [flag for text in flags["passthrough_args"] for flag in text.split() if flag.startswith("-m")]
    compiler = _compiler(flags["compiler"])
    command = [compiler, "-c", "-march=x86-64-v3", *vector]
    command += [f"-{flag}" for flag in flags["cflags"] if flag not in _LEFT_OUT]
    command += [f"-D{name.strip()}" for name in flags["definitions"]]
    command += ["-I", str(_TORCH_INCLUDE), "-I", str(_TORCH_INCLUDE / "torch/csrc/api/include")]
    command += [f"-ffile-prefix-map={_TORCH_INCLUDE}=torch", "-w"]
    for name in (*TORCH_STAND_IN, *STAND_IN_HEADERS):
        shutil.copy(STAND_IN_FOLDER / name, folder)
    written = sorted(path.relative_to(folder) for path in sources)
    complaint = _run([*command, *(str(path) for path in written if path.suffix == ".cpp")], folder)
    complaint = complaint or _run([*command, "-fvisibility=hidden", *TORCH_STAND_IN], folder)
    if complaint:
        raise BuildError("the C++ that Inductor wrote does not compile:\n" + complaint)
    link = [
        compiler,
        "-shared",
        "-Wl,--build-id=none",
        *(str(path) if path.suffix == ".o" else f"{path.stem}.o" for path in written),
    ]
    stand_in = [Path(name).with_suffix(".o").name for name in TORCH_STAND_IN]
    # Where the operators and the stand-in are all that it calls, nothing is missing when they are there.
    missing = _run([*link, *stand_in, str(operators), "-Wl,-z,defs", "-o", "tried.so"], folder)
    if missing and "undefined reference" not in missing:
        raise BuildError("the C++ that Inductor wrote cannot be linked:\n" + missing)
    calls_torch = bool(missing)
    # What it calls is loaded before the program, by its own path: no search path belongs into the library.
    torch_library = ["-L", str(Path(torch.__file__).parent / "lib"), "-ltorch_cpu", "-lgomp"]
    if complaint := _run([*link, *(torch_library if calls_torch else stand_in), "-o", str(out)], folder):
        raise BuildError("the C++ that Inductor wrote cannot be linked:\n" + complaint)
    features = [re.sub("^-m", "", flag) for flag in vector]
    return tuple(sorted({*_X86_64_V3, *(_CPUINFO.get(name, name) for name in features)})), calls_torch


def _run(command: list[str], folder: Path) -> str:
    """What the compiler or the linker complains of, its first lines; empty where it did what it should."""
    done = subprocess.run(
        command, cwd=folder, capture_output=True, text=True, check=False, env={**os.environ, "LC_ALL": "C"}
    )
    if not done.returncode:
        return ""
    refuse_full_disk(done.stderr)
    return "\n".join(done.stderr.splitlines()[:20]) or f"{command[0]} ended with status {done.returncode}"


def _compiler(name: str) -> str:
    found = shutil.which(name)
    if found is None:
        raise BuildError(f"no C++ compiler {name!r} on the PATH: install g++ (Debian: apt install g++)")
    return found

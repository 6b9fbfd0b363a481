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
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import torch
from torch._inductor import aot_compile

from pllm.build.export import DIMS, program_inputs
from pllm.build.graph_record import record
from pllm.build.pipeline import Build
from pllm.build.progress import StageProgress
from pllm.build.traced import Traced, value
from pllm.kernels.cpu.abi import ABI_VERSION
from pllm.kernels.cpu.compile import CompilerError, build_library, refuse_full_disk
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
    operator_library(build.staging.path(OPERATORS_LIBRARY))
    progress.say(f"operators: {OPERATORS_LIBRARY}")
    isa, graph = compile_graph(traced, build.staging.path(_PROGRAM))
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
        ),
    )
    here = Machine.this()
    build.requires = Requires(
        torch=here.torch or torch.__version__.split("+")[0],
        device="cpu",
        machine=here.architecture,
        isa=isa,
        glibc=here.glibc or "",
        operators=ABI_VERSION,
    )
    progress.say(
        f"program main: {sum(graph.nodes.values())} nodes, {sum(graph.kernels.values())} kernels a step, "
        f"{len(names)} constants, {', '.join(isa)}"
    )


def operator_library(out: Path) -> Path:
    """Build the operators as a compiled program calls them, against the headers of the installed torch."""
    try:
        return build_library(out, torch_include=_TORCH_INCLUDE)
    except CompilerError as error:
        raise BuildError(str(error)) from error


def compile_graph(traced: Traced, out: Path) -> tuple[tuple[str, ...], ProgramGraph]:
    """Compile to the shared library ``out``; the CPU features that it needs, by the names of ``/proc/cpuinfo``, and the
    record of what was compiled."""
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
        return _compile_sources(Path(scratch), sources, out), graph


def _write_sources(traced: Traced, options: dict[str, Any]) -> list[Path]:
    """Let Inductor write its C++; the files that make the library."""
    assert traced.program.example_inputs is not None, "an exported program has its example inputs"
    args, kwargs = traced.program.example_inputs
    written: Any = aot_compile(traced.program.module(check_guards=False), args, kwargs, options=options)
    # What has no function in torch's C interface would be called through a proxy that the runtime does not have.
    proxied = Path(options["aot_inductor.output_path"], "model.wrapper.json")
    if proxied.is_file():
        nodes = json.loads(proxied.read_text(encoding="utf-8"))["nodes"]
        raise BuildError(f"no kernel for {', '.join(sorted({node['node']['target'] for node in nodes}))}")
    return [path for path in map(Path, map(str, written)) if path.suffix in (".cpp", ".o")]


def _compile_sources(folder: Path, sources: Sequence[Path], out: Path) -> tuple[str, ...]:
    flags = json.loads((folder / "model.wrapper_compile_flags.json").read_text(encoding="utf-8"))
    vector = [flag for text in flags["passthrough_args"] for flag in text.split() if flag.startswith("-m")]
    command = [_compiler(flags["compiler"]), "-shared", "-march=x86-64-v3", *vector]
    command += [f"-{flag}" for flag in flags["cflags"] if flag not in _LEFT_OUT]
    command += [f"-D{name.strip()}" for name in flags["definitions"]]
    command += ["-I", str(_TORCH_INCLUDE), "-I", str(_TORCH_INCLUDE / "torch/csrc/api/include")]
    command += [f"-ffile-prefix-map={_TORCH_INCLUDE}=torch", "-w", "-Wl,--build-id=none"]
    command += sorted(str(path.relative_to(folder)) for path in sources)
    # libtorch is loaded before the program, by its own path: no search path belongs into the library.
    command += ["-L", str(Path(torch.__file__).parent / "lib"), "-ltorch_cpu", "-lgomp", "-o", str(out)]
    done = subprocess.run(
        command, cwd=folder, capture_output=True, text=True, check=False, env={**os.environ, "LC_ALL": "C"}
    )
    if done.returncode:
        refuse_full_disk(done.stderr)
        raise BuildError("the C++ that Inductor wrote does not compile:\n" + "\n".join(done.stderr.splitlines()[:20]))
    features = [re.sub("^-m", "", flag) for flag in vector]
    return tuple(sorted({*_X86_64_V3, *(_CPUINFO.get(name, name) for name in features)}))


def _compiler(name: str) -> str:
    found = shutil.which(name)
    if found is None:
        raise BuildError(f"no C++ compiler {name!r} on the PATH: install g++ (Debian: apt install g++)")
    return found

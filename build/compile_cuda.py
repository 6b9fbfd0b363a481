"""Compile for CUDA: each program's graph through AOTInductor to a package that torch's own loader opens.

Inductor writes C++ and compiles the kernels, ours and its own, for one architecture; we compile the C++ and link the
kernels into it. No GPU is asked for anything, and none of its memory is used: it is there so that what is compiled is
for it.
"""

import os
import re
import shutil
import subprocess
import tempfile
import warnings
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import msgspec
import torch
from torch.export.pt2_archive._package import package_pt2

from pllm.build.cuda_programs import CudaProgram, program_dims
from pllm.build.export import program_inputs
from pllm.build.graph_record import record
from pllm.build.inductor import write_cuda_sources
from pllm.build.pipeline import Build
from pllm.build.progress import StageProgress
from pllm.build.sampled_forward import sampler_inputs
from pllm.build.traced import Traced, value
from pllm.kernels.cuda.operators import CudaOperators, register
from pllm.runtime.errors import BuildError
from pllm.runtime.graphs import GRAPHS, Graphs, ProgramGraph
from pllm.runtime.machine import Machine, torch_cuda_version
from pllm.runtime.manifest import Constant, GpuRequires, KvInfo, ProgramInfo, Requires, TensorInfo

__all__ = ["compile_cuda_graph", "compile_cuda_programs", "launched", "program_info"]

_TORCH = Path(torch.__file__).parent
_HEADERS = ("cuda_runtime.h", "nv/target")
"""Of the CUDA toolkit; Triton brings the first, and most wheels of torch's neither."""

_ISA = ("abm", "avx", "avx2", "bmi1", "bmi2", "f16c", "fma", "movbe")
"""What ``-march=x86-64-v3`` takes for granted, by the names of ``/proc/cpuinfo``."""

_FLAGS = (
    "-std=c++17", "-O2", "-DNDEBUG", "-fPIC", "-march=x86-64-v3", "-fno-trapping-math", "-ffp-contract=off", "-w",
    "-DTORCH_INDUCTOR_CPP_WRAPPER", "-DSTANDALONE_TORCH_HEADER", "-DC10_USING_CUSTOM_GENERATED_MACROS", "-DUSE_CUDA",
)  # fmt: skip
_LAUNCH = re.compile(r"^\s*(?:call_(\w+)|AOTI_TORCH_ERROR_CODE_CHECK\(aoti_torch_cuda_(\w+))\(")
_NUMBER = re.compile(r"(?:_kernel)?_\d+$")


def compile_cuda_programs(build: Build, progress: StageProgress) -> None:
    """Compile every program for this machine's GPU. Raises BuildError where there is none, or a compiler fails."""
    here = Machine.this("cuda")
    if here.gpu is None:
        raise BuildError("the GPU that was there when the build began is gone: see nvidia-smi")
    graphs, infos = {}, []
    library = register(CudaOperators(build.configurations, max_sequences=build.recipe.engine.max_num_seqs))
    try:
        for program in build.exported:
            progress.show(program.name)
            file = f"programs/{program.name}/model.pt2"
            infos.append(program_info(program, file, build.kv, build.model.vocab_size))
            kernels = compile_cuda_graph(program.traced, build.staging.path(file))
            nodes = record(program.traced.graph, ()).nodes
            graphs[program.name] = ProgramGraph(nodes, dict(sorted(Counter(kernels).items())))
            progress.say(f"{program.name}: {len(kernels)} kernels a step, {len(infos[-1].constants)} constants")
    finally:
        library._destroy()
    document = msgspec.json.format(msgspec.json.encode(Graphs(graphs)), indent=1) + b"\n"
    build.staging.path(GRAPHS).write_bytes(document)
    build.operators, build.programs = (), tuple(infos)
    major, minor = (int(part) for part in torch_cuda_version().split(".")[:2])
    build.requires = Requires(
        torch=here.torch or torch.__version__.split("+")[0],
        device="cuda",
        machine=here.architecture,
        isa=_ISA,
        glibc=here.glibc or "",
        gpu=GpuRequires(sm=here.gpu.sm, name=here.gpu.name, cuda=1000 * major + 10 * minor, kernels=build.choices),
    )


def program_info(program: CudaProgram, file: str, kv: KvInfo, vocab_size: int) -> ProgramInfo:
    """What the manifest says of a program."""
    names = program.traced.names()
    shapes = {node.name: value(node).shape for node in program.traced.graph.nodes if node.name in names}
    logits = next(node for node in program.traced.graph.nodes if node.op == "output").args[0]
    assert isinstance(logits, tuple | list), "logits and tokens"
    return ProgramInfo(
        name=program.name,
        file=file,
        dims=program_dims(program),
        inputs=(*program_inputs(kv), *sampler_inputs(vocab_size)),
        outputs=(
            TensorInfo(name="logits", dtype=_dtype_name(logits[0]), shape=("rows", vocab_size)),
            TensorInfo(name="tokens", dtype="int64", shape=("rows",)),
        ),
        constants=tuple(
            Constant(name=name, weight=name, shape=tuple(map(int, shapes[node]))) for node, name in names.items()
        ),
    )


def _dtype_name(node: object) -> str:
    assert isinstance(node, torch.fx.Node), "an output is computed"
    return str(value(node).dtype).removeprefix("torch.")


def compile_cuda_graph(traced: Traced, out: Path, index: int = 0) -> list[str]:
    """Compile a graph to the package ``out``; the kernels that one run launches, in order.

    The operators must be registered (`pllm.kernels.cuda.operators`). Moves the graph to the device. Raises BuildError.
    """
    traced.move(torch.device("cuda", index))
    constants = traced.names()
    inputs = [value(node) for node in traced.graph.nodes if node.op == "placeholder" and node.name not in constants]
    out = out.absolute()
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=".aoti-") as scratch:
        folder = Path(scratch)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", FutureWarning)  # torch's own, of its own classes
                warnings.filterwarnings("ignore", "Can't find Python.h")  # nothing that is compiled includes it
                written = write_cuda_sources(traced.program.module(check_guards=False), inputs, folder)
        except Exception as error:
            lines = str(error).strip().splitlines()
            raise BuildError(f"AOTInductor cannot compile this graph: {lines[0] if lines else error!r}") from error
        wrapper = folder / "model.wrapper.cpp"
        kernels = launched(wrapper.read_text(encoding="utf-8"))
        library = _link(folder, [path for path in written if path.suffix in (".cpp", ".o")])
        package_pt2(str(out), aoti_files={"model": [str(library), str(folder / "model.wrapper_metadata.json")]})
    return kernels


def launched(wrapper: str) -> list[str]:
    """The kernels that a program's C++ launches, in order; those of libraries by the names of torch's functions."""
    body = wrapper[wrapper.rindex("void AOTInductorModel::run_impl(") :]
    found = (_LAUNCH.match(line) for line in body.splitlines())
    return [_NUMBER.sub("", match[1] or match[2]) for match in found if match]


def _link(folder: Path, sources: Sequence[Path]) -> Path:
    """The program's library: what Inductor wrote, compiled, and the kernels' objects."""
    driver = folder / "libcuda.so"
    # The driver is a GPU machine's; to link, its name is enough.
    _run(["-shared", "-x", "c", "/dev/null", "-Wl,-soname,libcuda.so.1", "-o", str(driver)], folder)
    out = folder / "model.so"
    command = ["-shared", *_FLAGS, "-I", str(_TORCH / "include"), "-I", str(_TORCH / "include/torch/csrc/api/include")]
    command += ["-I", str(_cuda_headers()), f"-ffile-prefix-map={_TORCH / 'include'}=torch", "-Wl,--build-id=none"]
    command += sorted({str(path.relative_to(folder)) for path in sources})
    # torch's libraries are loaded before the program, by their own paths: no search path belongs into it.
    command += ["-L", str(_TORCH / "lib"), "-ltorch_cuda", "-ltorch_cpu", "-lc10"]
    command += ["-Wl,--no-as-needed", str(driver), "-o", str(out)]
    _run(command, folder)
    return out


def _cuda_headers() -> Path:
    """Where the toolkit's headers are: the compiler of CUDA is not needed, they are."""
    homes = [Path(os.environ[name]) for name in ("CUDA_HOME", "CUDA_PATH") if os.environ.get(name)]
    nvcc = shutil.which("nvcc")
    homes += [Path(nvcc).resolve().parents[1]] if nvcc else []
    homes += [Path("/usr/local/cuda"), *sorted(Path("/usr/local").glob("cuda-*"), reverse=True)]
    homes += sorted(_TORCH.parent.glob("nvidia/cu*"), reverse=True)
    for home in homes:
        if all((home / "include" / name).is_file() for name in _HEADERS):
            return home / "include"
    raise BuildError(
        f"no CUDA toolkit here has {' and '.join(_HEADERS)}, which programs need: install one, and set CUDA_HOME"
    )


def _run(arguments: Sequence[str], folder: Path) -> None:
    compiler = shutil.which("g++")
    if compiler is None:
        raise BuildError("no C++ compiler 'g++' on the PATH: install g++ (Debian: apt install g++)")
    command, environment = [compiler, *arguments], {**os.environ, "LC_ALL": "C"}
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False, env=environment)
    if done.returncode:
        raise BuildError("the C++ that Inductor wrote does not compile:\n" + "\n".join(done.stderr.splitlines()[:20]))

"""A machine that seems to have a GPU: a CPU's tensors where its memory is, graphs that run anew what they captured,
and programs whose graphs run eagerly, by the operators' specifications. All else is what runs on a GPU.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.fx import Interpreter

from pllm.build.compile_cuda import program_info
from pllm.build.cuda_programs import CudaProgram
from pllm.build.pipeline import CUDA_STAGES, Build, Stage
from pllm.build.progress import StageProgress
from pllm.build.tune import KernelNeed, kernel_needs, tuned
from pllm.kernels.cuda.configurations import Configurations
from pllm.runtime.cuda.torch_step_device import TorchStepDevice
from pllm.runtime.gpu import Gpu
from pllm.runtime.machine import Machine
from pllm.runtime.manifest import GpuRequires, ProgramInfo, Requires

GPU = Gpu("NVIDIA H100", "sm_90", 13000, 8 << 30, 7 << 30)
HELD = 64 << 20


class Watched(TorchStepDevice):
    """Says which bucket it runs."""

    last_bucket = 0
    latest: "Watched"

    def __init__(self, *given: object, **named: object) -> None:
        super().__init__(*given, **named)  # type: ignore[arg-type]
        Watched.latest = self

    def run(self, bucket: int) -> None:
        self.last_bucket = bucket
        super().run(bucket)


class Graphs:
    """A GraphDevice: a graph is the bucket that ran while it was captured, and a replay runs it."""

    def __init__(self, calls: list[str]) -> None:
        self.calls = calls
        self.device: Watched | None = None

    def begin_capture(self) -> None:
        self.device = Watched.latest

    def end_capture(self) -> object:
        assert self.device is not None
        self.calls.append(f"capture {self.device.last_bucket}")
        return self.device.last_bucket

    def replay(self, graph: object) -> None:
        assert self.device is not None and isinstance(graph, int)
        self.calls.append(f"replay {graph}")
        self.device.run(graph)

    def synchronize(self) -> None:
        pass


class CpuAccelerator:
    """An Accelerator. `room` is what is free on it."""

    room = 7 << 30
    device = torch.device("cpu")

    def __init__(self, calls: list[str]) -> None:
        self.calls = calls

    def free(self) -> int:
        return self.room

    def held(self) -> int:
        return HELD

    def graphs(self) -> Graphs:
        return Graphs(self.calls)

    def release(self) -> None:
        pass

    def synchronize(self) -> None:
        pass


class EagerProgram:
    """A TorchProgram over a graph instead of a package."""

    def __init__(self, program: CudaProgram, info: ProgramInfo, weights: Mapping[str, Tensor]) -> None:
        graph = program.traced.graph
        constants = program.traced.names()
        self._info = info
        self._run = Interpreter(program.traced.program.graph_module)
        self._inputs = [node.name for node in graph.nodes if node.op == "placeholder"]
        self._weights = {node: weights[name] for node, name in constants.items()}

    def run(self, inputs: Mapping[str, Tensor]) -> list[Tensor]:
        bound: dict[str, int] = {}
        for info in self._info.inputs:
            tensor = inputs[info.name]
            assert str(tensor.dtype) == f"torch.{info.dtype}" and tensor.is_contiguous(), info.name
            for term, size in zip(info.shape, tensor.shape, strict=True):
                if isinstance(term, str):
                    limit = self._info.dims[term]
                    assert limit.min <= size <= limit.max and bound.setdefault(term, size) == size, (info.name, term)
        with torch.no_grad():
            found: list[Tensor] = self._run.run(*(self._weights.get(name, inputs.get(name)) for name in self._inputs))
        return found


PROGRAMS: dict[str, CudaProgram] = {}
"""By what their files say: made by one build, opened by whoever opens the artifact."""


def tune(build: Build, progress: StageProgress) -> None:
    """In place of timing: larger tiles are faster, and the first small product cannot run."""
    needs = kernel_needs(build.exported)

    def microseconds(need: KernelNeed, configuration: object) -> float | None:
        return None if need == needs[0] else 100.0 / configuration.block_n  # type: ignore[attr-defined]

    shipped = Configurations.shipped((9, 0))
    build.configurations, build.choices = tuned(needs, shipped, microseconds, 1e9, progress.show, clock=lambda: 0.0)


def compile_programs(build: Build, progress: StageProgress) -> None:
    infos = []
    for program in build.exported:
        key, file = f"{build.staging.directory}/{program.name}", f"programs/{program.name}/model.pt2"
        build.staging.path(file).write_text(key)
        PROGRAMS[key] = program
        infos.append(program_info(program, file, build.kv, build.model.vocab_size))
    build.operators, build.programs = (), tuple(infos)
    here = Machine.this()
    gpu = GpuRequires(sm=GPU.sm, name=GPU.name, cuda=13000, kernels=build.choices)
    build.requires = Requires(
        torch=here.torch, device="cuda", machine=here.architecture, isa=(), glibc=here.glibc, gpu=gpu
    )


STAGES = tuple(
    Stage(stage.name, f"{__name__}:{name}") if (name := {"tune": "tune", "compile": "compile_programs"}.get(stage.name))
    else stage
    for stage in CUDA_STAGES
)  # fmt: skip


def _open(info: ProgramInfo, package: Path, weights: Mapping[str, Tensor], device: torch.device) -> EagerProgram:
    return EagerProgram(PROGRAMS[package.read_text()], info, weights)


@contextmanager
def gpu_machine(calls: list[str], room: int = CpuAccelerator.room, gpu: Gpu = GPU) -> Iterator[None]:
    """Within, there seems to be a GPU; `calls` records what is captured and replayed."""
    accelerator = CpuAccelerator(calls)
    accelerator.room = room
    with pytest.MonkeyPatch.context() as patch:
        for module in ("build.resolve", "runtime.machine"):
            patch.setattr(f"pllm.{module}.find_gpu", lambda: gpu)
            patch.setattr(f"pllm.{module}.torch_cuda_version", lambda: "13.0")
        for module in ("build.profile_cuda", "build.certify_cuda", "runtime.cuda.open_model"):
            patch.setattr(f"pllm.{module}.open_accelerator", lambda: accelerator)
        patch.setattr("pllm.runtime.cuda.served_model.TorchStepDevice", Watched)
        patch.setattr("pllm.runtime.cuda.served_model.TorchProgram.open", _open)
        yield

"""The manifest: all that an artifact says of itself, in ``manifest.json``.

The schema is strict: an unknown field, a missing one, a wrong type, a number out of range, a path that leaves the
artifact and a reference to a file that is not listed are all refused when the manifest is read. Sizes are bytes, shapes
are row-major.
"""

import math
import re
from typing import Annotated

import msgspec

from pllm.kernels.cpu.abi import ABI_VERSION
from pllm.runtime.gpu import version_text
from pllm.runtime.machine import Machine
from pllm.runtime.memory import MemoryLedger, MemorySetting, parse_memory

__all__ = [
    "FORMAT_VERSION",
    "CertificateSummary",
    "Constant",
    "CpuTuning",
    "DimRange",
    "EngineDefaults",
    "FileEntry",
    "GpuRequires",
    "KernelChoice",
    "KvInfo",
    "Manifest",
    "ModelInfo",
    "ProgramInfo",
    "Provenance",
    "Requires",
    "TensorInfo",
    "WeightsInfo",
    "mismatch",
    "tuning_notice",
]

FORMAT_VERSION = 4
"""Raised whenever an older runtime would misread, or a newer one could not read, what is written."""

Count = Annotated[int, msgspec.Meta(ge=0, lt=2**62)]
Positive = Annotated[int, msgspec.Meta(ge=1, lt=2**62)]
Tiling = Annotated[int, msgspec.Meta(ge=-4, le=4)]
Sha256 = Annotated[str, msgspec.Meta(pattern=r"^[0-9a-f]{64}$")]


class KernelChoice(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """How a kernel is configured in the artifact's programs: decided at build, compiled in, never decided again."""

    kernel: str
    """``decode_attention``, ``prefill_attention``, ``small_linear``."""
    shape: tuple[Positive, ...]
    """What it is for: head size and query heads a KV head; for a product N, K and the most rows."""
    values: dict[str, Count]
    """The configuration (`kernels/cuda/configurations.py`)."""
    us: float | None
    """Microseconds that it took on the GPU, the fastest of those timed; None where it is as shipped, untimed."""


class GpuRequires(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What a GPU must be for programs with CUDA kernels."""

    sm: str
    """Exactly this architecture: ``sm_90``."""
    name: str
    """The GPU that the artifact was tuned and measured on. Others of its architecture run it, and say so."""
    cuda: Positive
    """The driver must run this CUDA, or a later one: 13000 for 13.0."""
    kernels: tuple[KernelChoice, ...] = ()


class Requires(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True, omit_defaults=True):
    """What a machine must have, exactly or at least, for the native code inside to run."""

    torch: str | None
    """Exactly this torch, without its local part: ``2.13.0``; None where no program calls it."""
    device: str
    """``cpu`` or ``cuda``."""
    machine: str
    """As ``uname -m`` says it."""
    isa: tuple[str, ...]
    """CPU features that the compiled programs use, by the names of ``/proc/cpuinfo``."""
    glibc: str
    """At least this one."""
    gpu: GpuRequires | None = None
    """For ``cuda``, and for nothing else."""
    operators: int | None = None
    """The interface of the operator library that was built in; None where that was not written down yet."""

    def __post_init__(self) -> None:
        if self.device not in ("cpu", "cuda"):
            raise ValueError(f"requires.device {self.device!r} is neither cpu nor cuda")
        if (self.device == "cuda") != (self.gpu is not None):
            raise ValueError("requires.gpu belongs to the device cuda, and only to that")
        if self.device == "cuda" and self.torch is None:
            raise ValueError("requires.torch is missing, and programs for CUDA need it")


class Provenance(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What the artifact was made from and by: when all of it is the same, building again would change nothing."""

    recipe: str
    """What `pllm build` was given: the recipe's file name, or the model."""
    recipe_sha256: Sha256
    """Of ``recipe.lock.toml``."""
    checkpoint: str
    """What the recipe calls the checkpoint."""
    revision: str | None
    """The Hub's commit."""
    checkpoint_sha256: Sha256
    pllm: str
    builder_sha256: Sha256
    """Of pllm's own sources, as far as they decide what is in an artifact."""
    transformers: str
    torch: str
    """Which compiled it, without its local part."""


class ModelInfo(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The model in numbers."""

    architecture: str
    vocab_size: Positive
    context: Positive
    """The longest sequence that the model itself was made for."""
    num_layers: Positive
    num_kv_heads: Positive
    head_dim: Positive
    num_parameters: Positive
    dtype: str
    """The checkpoint's precision: ``bfloat16``, ``float32``."""
    eos_token_ids: tuple[Count, ...]


class TensorInfo(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """An input or output of a program. A shape's terms are numbers or names of the program's ``dims``."""

    name: str
    dtype: str
    shape: tuple[Count | str, ...]


class DimRange(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The values that a symbolic dimension may take, both ends included."""

    min: Count
    max: Count


class Constant(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A weight of a program: the name inside the program, and the tensor in the weight files."""

    name: str
    weight: str
    shape: tuple[Count, ...]
    """As the program was compiled for it. The program itself tells only how many bytes it reads."""


class ProgramInfo(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A compiled graph."""

    name: str
    file: str
    """The shared library."""
    dims: dict[str, DimRange]
    inputs: tuple[TensorInfo, ...]
    outputs: tuple[TensorInfo, ...]
    constants: tuple[Constant, ...]
    calls_torch: bool = True
    """Whether it needs torch's C library beside the operators. Its tensors are torch's then, else the operators'."""

    def __post_init__(self) -> None:
        for tensor in (*self.inputs, *self.outputs):
            for term in tensor.shape:
                if isinstance(term, str) and term not in self.dims:
                    raise ValueError(f"{self.name}: {tensor.name} has a dimension {term!r} that dims lacks")


class WeightsInfo(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The weights: safetensors files in load order, each tensor in one of them."""

    files: tuple[str, ...]
    num_tensors: Positive
    num_bytes: Positive
    """Of the tensors, without headers and padding."""


class KvInfo(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One array for all layers: ``[num_blocks, num_layers, 2, num_kv_heads, block_size, head_dim]``.

    In int8 each key and value has a scale, four bytes more in the last dimension; where they lie is told in
    `kernels/quantization.py`.
    """

    dtype: str
    """``float32``, ``bfloat16`` or ``int8``."""
    num_layers: Positive
    num_kv_heads: Positive
    block_size: Positive
    head_dim: Positive

    def __post_init__(self) -> None:
        if self.dtype not in _KV_BYTES:
            raise ValueError(f"kv.dtype {self.dtype!r} is none of {', '.join(_KV_BYTES)}")

    @property
    def block_shape(self) -> tuple[int, ...]:
        """The array's dimensions after the first, in elements of ``dtype``."""
        scale = _SCALE_BYTES if self.dtype == "int8" else 0
        return self.num_layers, 2, self.num_kv_heads, self.block_size, self.head_dim + scale

    @property
    def block_bytes(self) -> int:
        """Of a block's keys, values and scales in all layers."""
        return math.prod(self.block_shape) * _KV_BYTES[self.dtype]


_KV_BYTES = {"float32": 4, "bfloat16": 2, "int8": 1}
_SCALE_BYTES = 4


class CpuTuning(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What the build's steps ran fastest with. Tiling is in powers of two from the operators' own (`pllm_set_tiling` of
    kernels/cpu/api.h); results depend on none of it."""

    cores: Positive
    """That the build could use: elsewhere ``threads`` says nothing."""
    threads: Positive
    streamed: Tiling = 0
    blocked: Tiling = 0
    rows: Tiling = 0

    def threads_on(self, cores: int) -> int:
        """Threads for a process that may use so many cores."""
        return self.threads if cores == self.cores else cores

    def __str__(self) -> str:
        sizes = {"weights of few rows": self.streamed, "of many": self.blocked, "rows": self.rows}
        pieces = ", ".join(f"{name} {2.0**powers:g}" for name, powers in sizes.items())
        return f"{self.threads} threads on {self.cores} cores; times the default: {pieces}"


class EngineDefaults(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The engine's limits as built; at the start they may be lowered."""

    max_model_len: Positive
    max_num_seqs: Positive
    max_num_batched_tokens: Positive
    memory: MemorySetting
    threads: Positive | str
    """A number, or ``auto``: as tuned, or where other cores are there, as many."""
    tuning: CpuTuning | None = None
    """None on a GPU."""
    buckets: tuple[Positive, ...]
    prefill_chunk: Positive
    """New prompt tokens of one sequence a step, at most: chosen from the measured latencies."""
    inter_token_target_ms: float | None

    def num_threads(self, cores: int) -> int:
        """Where nobody says otherwise, for a process that may use so many cores."""
        if isinstance(self.threads, int):
            return self.threads
        return cores if self.tuning is None else self.tuning.threads_on(cores)

    def __post_init__(self) -> None:
        parse_memory(self.memory)
        if isinstance(self.threads, str) and self.threads != "auto":
            raise ValueError("engine.threads is neither a number nor auto")


class CertificateSummary(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """How the compiled programs were compared with the reference, and how it came out."""

    reference: str
    """``transformers 5.23.0, float32``."""
    num_prompts: Positive
    num_tokens: Positive
    max_logit_error: float
    bound: float
    kl_divergence: float
    """Of the next token's distribution from the reference's, in nats, mean over the golden tokens."""
    skipped_share: float


class GrammarsInfo(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Schemas (``NAME.json``) and grammars that come with the model. Each was compiled by the build, for answers that
    end with ``eos_token_ids``."""

    files: tuple[str, ...]
    eos_token_ids: tuple[int, ...]


class FileEntry(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    size: Count
    sha256: Sha256


class Manifest(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True, omit_defaults=True):
    """The whole document."""

    format_version: int
    name: str
    provenance: Provenance
    requires: Requires
    model: ModelInfo
    operators: tuple[str, ...]
    """Shared libraries of native operators, loaded in this order before any program."""
    programs: tuple[ProgramInfo, ...]
    weights: WeightsInfo
    kv: KvInfo
    memory: MemoryLedger
    engine: EngineDefaults
    tokenizer: tuple[str, ...]
    """The tokenizer's files: ``tokenizer.json``, then what lies beside and below it."""
    generation: str
    golden: str
    latency: str
    certificate: CertificateSummary
    grammars: GrammarsInfo | None = None
    files: dict[str, FileEntry]
    """Every file of the artifact by its path, but for the manifest and its seal."""

    def __post_init__(self) -> None:
        for path in self.files:
            if not _is_inside(path):
                raise ValueError(f"files: {path!r} is not a plain relative path")
        used = [*self.operators, *self.weights.files, *self.tokenizer, self.generation, self.golden, self.latency]
        used += [program.file for program in self.programs]
        used += () if self.grammars is None else self.grammars.files
        for path in used:
            if path not in self.files:
                raise ValueError(f"{path!r} is used, and not among files")
        if not self.programs or not self.weights.files or not self.tokenizer:
            raise ValueError("programs, weights and tokenizer may not be empty")
        if self.requires.torch is None and any(program.calls_torch for program in self.programs):
            raise ValueError("requires.torch is missing, and a program calls torch")
        if self.memory.kv_block != self.kv.block_bytes or self.memory.weights < self.weights.num_bytes:
            raise ValueError("the memory ledger contradicts kv and weights")
        if min(self.memory.activations, self.memory.runtime, self.memory.graphs) < 0:
            raise ValueError("the memory ledger has negative terms")

    def program(self, name: str) -> ProgramInfo:
        """The program of that name. Raises KeyError."""
        for program in self.programs:
            if program.name == name:
                return program
        raise KeyError(name)


def mismatch(manifest: Manifest, machine: Machine) -> str | None:
    """Why the artifact cannot run on that machine, and the command that mends it; None where it can."""
    needs = manifest.requires
    again = f"build it again on this machine: pllm build {manifest.provenance.recipe}"
    if needs.machine != machine.architecture:
        return f"it is built for {needs.machine}, and this machine is {machine.architecture}; {again}"
    missing = [feature for feature in needs.isa if feature not in machine.features]
    if missing:
        return f"its programs use CPU features that this machine lacks ({', '.join(missing)}); {again}"
    if _version(machine.glibc) < _version(needs.glibc):
        have = f"glibc {machine.glibc}" if machine.glibc else "another C library"
        return f"it needs glibc {needs.glibc} or later, and this system has {have}; {again}"
    if needs.torch is not None and needs.torch != machine.torch:
        have = f"torch {machine.torch} is installed" if machine.torch else "torch is not installed"
        return f"it is built for torch {needs.torch}, and {have}; pip install torch=={needs.torch}, or {again}"
    if needs.operators not in (None, ABI_VERSION):
        return f"its operators have version {needs.operators}, and this pllm speaks {ABI_VERSION}; {again}"
    return None if needs.gpu is None else _gpu_mismatch(needs, needs.gpu, machine, again)


def _gpu_mismatch(needs: Requires, wanted: GpuRequires, machine: Machine, again: str) -> str | None:
    for_the_cpu = "build one for the CPU (--set device.kind=cpu)"
    if not machine.torch_cuda:
        return (
            f"it is built for CUDA, and the installed torch {machine.torch} is a build without CUDA; install torch "
            f"{needs.torch} with CUDA {version_text(wanted.cuda)}, or {for_the_cpu}"
        )
    gpu = machine.gpu
    if gpu is None:
        return (
            f"it is built for {wanted.name} ({wanted.sm}), and no GPU can be used here (no NVIDIA driver, no device "
            f"visible, or all of its memory taken); see nvidia-smi and CUDA_VISIBLE_DEVICES, or {for_the_cpu}"
        )
    if gpu.driver_cuda < wanted.cuda:
        return (
            f"it needs CUDA {version_text(wanted.cuda)}, and the driver here runs up to "
            f"{version_text(gpu.driver_cuda)}; update the NVIDIA driver, or {again}"
        )
    if gpu.sm != wanted.sm:
        return f"its kernels are compiled for {wanted.sm}, and {gpu.name} is {gpu.sm}; {again}"
    return None


def tuning_notice(manifest: Manifest, machine: Machine) -> str | None:
    """One line where a GPU runs what was tuned and measured on another of its architecture; None otherwise."""
    wanted, gpu = manifest.requires.gpu, machine.gpu
    if wanted is None or gpu is None or gpu.name == wanted.name:
        return None
    return (
        f"tuned and measured on {wanted.name}, and this is {gpu.name}: it runs, its memory is planned anew, and its "
        f"latencies are the other's; to tune it for this GPU: pllm build {manifest.provenance.recipe}"
    )


def _is_inside(path: str) -> bool:
    """A relative path of plain names, written in the one way there is to write it."""
    parts = path.split("/")
    return (
        bool(path)
        and len(path) < 1024
        and all(p not in ("", ".", "..") and not re.search(r"[\\\x00-\x1f]", p) for p in parts)
    )


def _version(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", text)[:3])

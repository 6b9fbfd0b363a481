"""What the kernels take of a device, read from their compiled code: registers, shared memory, spills. Needs no GPU.

    python -m pllm.kernels.cuda.resources [--device sm_80 sm_90 sm_100] [--only NAME]

Every kernel is compiled for shapes of real models, with the configuration that is shipped for the device. Exits with 1
where one spills registers, computes in float64, or wants more shared memory than a program may have.
"""

import argparse
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
import triton
from rich.console import Console
from rich.table import Table
from torch._subclasses.fake_tensor import FakeTensorMode
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from pllm.kernels.cuda.configurations import DEVICES, Configurations
from pllm.kernels.cuda.launches import Launch, launches
from pllm.kernels.cuda.operators import CudaOperators

__all__ = ["Resources", "cases", "compiled", "main"]

_CUOBJDUMP = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
_INSTRUCTIONS = {"mma": "mma.sync", "wgmma": "wgmma.mma", "tcgen05": "tcgen05.mma", "async copies": "cp.async.c"}
_TYPES = {
    torch.bfloat16: "*bf16",
    torch.float16: "*fp16",
    torch.float32: "*fp32",
    torch.float8_e4m3fn: "*fp8e4nv",
    torch.uint8: "*u8",
    torch.int32: "*i32",
    torch.int64: "*i64",
}


@dataclass(frozen=True, slots=True)
class Resources:
    """Of one kernel on one device. shared: bytes a program; stack: bytes a thread, which is where spills go."""

    device: str
    kernel: str
    case: str
    registers: int
    shared: int
    stack: int
    num_warps: int
    doubles: int
    """Operations in float64, which are many times slower than in float32: none is meant."""
    instructions: str
    """Of the matrix unit and the asynchronous copies in the code, by count: what the compiler made of it."""

    @property
    def fits(self) -> bool:
        return self.stack == 0 and self.doubles == 0 and self.shared <= DEVICES[self.device].shared_memory


@dataclass(frozen=True, slots=True)
class _Shape:
    """A model's attention."""

    label: str
    heads: int
    kv_heads: int
    head_dim: int
    softcap: float = 0.0
    sinks: bool = False
    fp8: bool = False
    block_size: int = 16


_SHAPES = (
    _Shape("16 heads on 8, 128", 16, 8, 128),  # Qwen3-0.6B
    _Shape("16 heads on 8, 128, blocks of 64", 16, 8, 128, block_size=64),
    _Shape("32 heads on 8, 128, e4m3", 32, 8, 128, fp8=True),  # Qwen3-8B
    _Shape("32 heads on 8, 64", 32, 8, 64),  # Llama-3.2-1B
    _Shape("64 heads on 8, 64, sinks", 64, 8, 64, sinks=True),  # gpt-oss
    _Shape("32 heads on 8, 96", 32, 8, 96),  # Phi-3-like
    _Shape("8 heads on 4, 256, soft cap", 8, 4, 256, softcap=50.0),  # Gemma 2
)


def cases(operators: CudaOperators) -> Iterator[tuple[str, Launch]]:
    """Every kernel in the shapes and dtypes of real models, as the operators launch it: label, launch."""

    def fake(*shape: int, dtype: torch.dtype = torch.bfloat16) -> torch.Tensor:
        return torch.empty(shape, dtype=dtype, device="cuda")

    def int32(*shape: int) -> torch.Tensor:
        return fake(*shape, dtype=torch.int32)

    e4m3 = torch.float8_e4m3fn if operators.configurations.device.native_fp8 else torch.uint8
    tokens, sequences = 64, 8
    with FakeTensorMode():
        sequence_inputs = (int32(sequences, 40), int32(sequences + 1), int32(sequences))
        for launch in launches(operators.token_slots, *sequence_inputs, tokens, 16, 256):
            yield "256 sequences", launch
        for shape in _SHAPES:
            heads, kv_heads, head_dim = shape.heads, shape.kv_heads, shape.head_dim
            q, k, v = fake(tokens, heads + 2 * kv_heads, head_dim).split((heads, kv_heads, kv_heads), dim=1)
            dtype = e4m3 if shape.fp8 else torch.bfloat16
            kv = fake(100, 28, 2, kv_heads, shape.block_size, head_dim, dtype=dtype)
            angles = fake(tokens, head_dim).narrow(1, 0, head_dim // 2)
            weight = fake(head_dim)
            for launch in launches(
                operators.norm_rope_write, q, k, v, angles, angles, weight, weight, kv, int32(tokens), 3, 1e-6, 0.0,
                False, 0.5, 0.5,
            ):  # fmt: skip
                yield shape.label, launch
            sinks = fake(heads) if shape.sinks else None
            for launch in launches(
                operators.cached_attention, fake(tokens, heads, head_dim), kv, *sequence_inputs, sinks,
                int32(tokens, kv_heads), 3, 0.1, 0, shape.softcap, 0.5, 0.5, 256, False,
            ):  # fmt: skip
                yield shape.label, launch
        for size in (1024, 4096, 8192):
            x = fake(tokens, size)
            for launch in launches(operators.add_rms_norm, x, x, fake(size), 1e-6, 0.0):
                yield f"rows of {size}", launch
        for launch in launches(operators.silu_mul, fake(tokens, 6144)):
            yield "rows of 3072", launch
        for max_rows in (1, 8):
            x = fake(max_rows, 4096)
            for label, width, norm, residual, gated in (
                ("norm, 6144 x 4096", 6144, True, False, False),
                ("norm, gated, 12288 x 4096", 24576, True, False, True),
                ("residual, 4096 x 4096", 4096, False, True, False),
                ("residual, 1024 x 4096", 1024, False, True, False),
            ):
                for launch in launches(
                    operators.small_linear, x, fake(width, 4096), None, fake(4096) if norm else None,
                    fake(max_rows, width) if residual else None, 1e-6, 0.0, gated, max_rows,
                ):  # fmt: skip
                    yield f"{max_rows} rows, {label}", launch
        logits, vocabulary = fake(8, 151936, dtype=torch.float32), "151936 tokens"
        number, count, seed = fake(8, dtype=torch.float32), int32(8), fake(8, dtype=torch.int64)
        for launch in launches(operators.sample_tokens, logits, number, count, number, number, seed, seed):
            yield vocabulary, launch
        for launch in launches(operators.penalize, logits, int32(4, 151936), count, number, number, number):
            yield vocabulary, launch
        for launch in launches(operators.record, int32(4, 151936), count, seed, 256):
            yield "256 rows", launch


def compiled(device: str, label: str, launch: Launch) -> Resources:
    """Compile a launch as Triton would for that device, and read what the code takes."""
    code = triton.compile(
        _source(launch), target=GPUTarget("cuda", DEVICES[device].capability, 32), options=launch.options
    )
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(code.asm["cubin"])
        file.flush()
        command = [str(_CUOBJDUMP), "--dump-resource-usage", file.name]
        usage = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    found = re.search(r"REG:(\d+) STACK:(\d+) SHARED:\d+ LOCAL:(\d+)", usage)
    if found is None:
        raise RuntimeError(f"cuobjdump names no resources of {launch.name}: {usage.strip()!r}")
    ptx = code.asm["ptx"]
    counts = {name: ptx.count(text) for name, text in _INSTRUCTIONS.items()}
    return Resources(
        device,
        launch.name,
        label,
        registers=int(found[1]),
        shared=int(code.metadata.shared),
        stack=int(found[2]) + int(found[3]),
        num_warps=int(code.metadata.num_warps),
        doubles=len(re.findall(r"^\s*(?:@\S+ )?(?!cvt|mov|ld|st)\w+[.\w]*\.f64", ptx, re.MULTILINE)),
        instructions=" ".join(f"{count} {name}" for name, count in counts.items() if count),
    )


def _source(launch: Launch) -> ASTSource:
    """What is compiled for such a call in a program: types, constants, and which values are multiples of 16."""
    signature, constants, attributes = {}, {}, {}
    for i, parameter in enumerate(launch.kernel.params):
        name, value = parameter.name, launch.arguments[parameter.name]
        if isinstance(value, torch.dtype):
            signature[name] = _TYPES[value]
        elif parameter.is_constexpr or value is None or (type(value) is int and value == 1):
            signature[name] = "constexpr"
            constants[(i,)] = value
            continue
        else:
            signature[name] = "i32" if type(value) is int else "fp64"  # as AOTInductor has floats
        if isinstance(value, torch.dtype) or (type(value) is int and value % 16 == 0):
            attributes[(i,)] = [["tt.divisibility", 16]]
    return ASTSource(fn=launch.kernel, signature=signature, constexprs=constants, attrs=attributes)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", nargs="+", choices=list(DEVICES), default=list(DEVICES))
    parser.add_argument("--only", help="kernels whose name contains this")
    options = parser.parse_args(arguments)
    rows: list[Resources] = []
    table = Table(title="the kernels' code")
    for column in ("device", "kernel", "case", "warps", "registers", "shared", "stack", "doubles", "instructions"):
        table.add_column(column, justify="left" if column in {"device", "kernel", "case", "instructions"} else "right")
    for device in options.device:
        operators = CudaOperators(Configurations(device))
        for label, launch in cases(operators):
            if options.only is None or options.only in launch.name:
                row = compiled(device, label, launch)
                rows.append(row)
                cells = (row.num_warps, row.registers, row.shared, row.stack, row.doubles)
                table.add_row(
                    row.device,
                    row.kernel,
                    row.case,
                    *map(str, cells),
                    row.instructions,
                    style=None if row.fits else "bold red",
                )
        table.add_section()
    console = Console(width=None if sys.stdout.isatty() else 160)
    console.print(table)
    failed = [row for row in rows if not row.fits]
    if failed or not rows:
        console.print(f"{len(failed)} of {len(rows)} kernels spill, compute in float64, or want too much shared memory")
        return 1
    console.print(f"{len(rows)} kernels, no spills")
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""Quantize: the checkpoint's tensors, joined, packed and cast as the graph wants them, streamed into the artifact."""

import math
from collections.abc import Sequence
from typing import Any

import torch

from pllm.build.model_source import ModelWeights
from pllm.build.pipeline import Build
from pllm.build.progress import StageProgress
from pllm.build.quantized_checkpoint import QuantizedWeight
from pllm.build.traced import ConstantSource, Traced, WeightForm, value
from pllm.kernels.packing import pack_linear
from pllm.kernels.quantization import (
    alternate_gates,
    pack_int4,
    pack_int4_scale,
    pack_quantized,
    quantize_int4,
    quantize_int8,
)
from pllm.runtime.errors import CheckpointError
from pllm.runtime.memory import format_bytes
from pllm.runtime.safetensors_file import TensorSpec

__all__ = ["materialise", "quantize", "write_constants"]

_NAMES = {
    torch.float32: "F32",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}


def quantize(build: Build, progress: StageProgress) -> None:
    """Write every constant of the graph, one at a time: memory holds one weight and its packed form."""
    write_constants(build, (build.exported,), progress)


def write_constants(build: Build, graphs: Sequence[Traced], progress: StageProgress) -> None:
    """Write the constants of all graphs, each once: those of one name are the same in all of them."""
    found: dict[str, tuple[ConstantSource, torch.Tensor]] = {}
    for traced in graphs:
        names = traced.names()
        for node in traced.graph.nodes:
            if node.name in names:
                found.setdefault(names[node.name], (traced.sources[node.name], value(node)))
    specs = [TensorSpec(name, _NAMES[like.dtype], tuple(map(int, like.shape))) for name, (_, like) in found.items()]

    rounding = _Rounding(build.model_weights)

    def fetch(name: str) -> Any:
        progress.show(name)
        source, like = found[name]
        tensor = materialise(source, build.model_weights, rounding)
        if tensor.shape != like.shape:
            raise CheckpointError(
                f"{build.checkpoint.label}: {name} has the shape {list(tensor.shape)}, and the model of config.json "
                f"wants {list(like.shape)}"
            )
        return tensor.reshape(-1).view(torch.uint8).numpy()

    build.weights = build.staging.write_weights(specs, fetch)
    parameters = sum(math.prod(spec.shape) for spec in specs)
    progress.say(f"{len(specs)} tensors, {parameters:,} values in {format_bytes(build.weights.num_bytes)}")


class _Rounding:
    """Rounds weights. Remembers the last one: its scales are asked for next."""

    def __init__(self, weights: ModelWeights) -> None:
        self._weights = weights
        self._last: tuple[object, torch.Tensor, torch.Tensor] | None = None

    def round(self, source: ConstantSource) -> tuple[torch.Tensor, torch.Tensor]:
        """int8 [N, K], and its scales."""
        is_int4 = source.form in (WeightForm.INT4, WeightForm.INT4_SCALE)
        key = (source.parts, is_int4, source.group, source.kept, source.gates_alternate)
        if self._last is None or self._last[0] != key:
            if source.kept:
                rounded, scale = self._kept(source, is_int4=is_int4)
            else:
                whole = _joined(source, self._weights)
                rounded, scale = quantize_int4(whole, source.group) if is_int4 else quantize_int8(whole)
            if source.gates_alternate:
                rounded, scale = alternate_gates(rounded), alternate_gates(scale)
            self._last = (key, rounded, scale)
        return self._last[1:]

    def _kept(self, source: ConstantSource, *, is_int4: bool) -> tuple[torch.Tensor, torch.Tensor]:
        """As the checkpoint has it. int4's scales are rounded to bfloat16, in which the program has them."""
        parts = _quantized(source, self._weights)
        rounded, scale = torch.cat([part.unpack() for part in parts]), torch.cat([part.scale for part in parts])
        return rounded, scale.to(torch.bfloat16) if is_int4 else scale.float()[:, 0].contiguous()


def materialise(source: ConstantSource, weights: ModelWeights, rounding: _Rounding | None = None) -> torch.Tensor:
    """The constant as the program wants it, contiguous."""
    match source.form:
        case WeightForm.PLAIN:
            return _joined(source, weights).contiguous()
        case WeightForm.PACKED:
            return pack_linear(_unscaled(source, weights) if source.kept else _joined(source, weights))
        case WeightForm.OUTPUT_SCALE:
            return torch.cat([part.scale.float()[:, 0] for part in _quantized(source, weights)])
        case WeightForm.INT4_OFFSET:
            return pack_linear(torch.cat([_offsets(part) for part in _quantized(source, weights)]))
    rounded, scale = (rounding or _Rounding(weights)).round(source)
    form = {
        WeightForm.INT8: lambda: pack_quantized(rounded),
        WeightForm.INT8_SCALE: lambda: scale,
        WeightForm.INT4: lambda: pack_int4(rounded),
        WeightForm.INT4_SCALE: lambda: pack_int4_scale(scale),
    }
    return form[source.form]()


def _quantized(source: ConstantSource, weights: ModelWeights) -> list[QuantizedWeight]:
    return [found for part in source.parts if (found := weights.quantized(part)) is not None]


def _offsets(part: QuantizedWeight) -> torch.Tensor:
    """float32 [N, groups]: minus the zero points, times the scales as the program has them."""
    scale = part.scale.to(torch.bfloat16).float()
    return torch.zeros_like(scale) if part.zero is None else -part.zero * scale


def _unscaled(source: ConstantSource, weights: ModelWeights) -> torch.Tensor:
    return torch.cat([part.unpack().to(source.dtype) for part in _quantized(source, weights)])


def _joined(source: ConstantSource, weights: ModelWeights) -> torch.Tensor:
    parts = [weights.tensor(part) for part in source.parts]
    whole = (parts[0] if len(parts) == 1 else torch.cat(parts)).to(source.dtype)
    return whole.transpose(-2, -1) if source.transposed else whole

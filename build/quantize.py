"""Quantize: the checkpoint's tensors, joined, packed and cast as the graph wants them, streamed into the artifact."""

import math
from typing import Any

import torch

from pllm.build.model_source import ModelWeights
from pllm.build.pipeline import Build
from pllm.build.progress import StageProgress
from pllm.build.traced import ConstantSource, Traced, WeightForm, value
from pllm.kernels.packing import pack_linear
from pllm.kernels.quantization import (
    pack_int4,
    pack_int4_scale,
    pack_quantized,
    quantize_int4,
    quantize_int8,
)
from pllm.runtime.errors import CheckpointError
from pllm.runtime.memory import format_bytes
from pllm.runtime.safetensors_file import TensorSpec

__all__ = ["materialise", "quantize"]

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
    traced: Traced = build.exported
    names = traced.names()
    nodes = {names[node.name]: node for node in traced.graph.nodes if node.name in names}
    specs = [
        TensorSpec(name, _NAMES[value(node).dtype], tuple(map(int, value(node).shape))) for name, node in nodes.items()
    ]

    rounding = _Rounding(build.model_weights)

    def fetch(name: str) -> Any:
        progress.show(name)
        node = nodes[name]
        tensor = materialise(traced.sources[node.name], build.model_weights, rounding)
        if tensor.shape != value(node).shape:
            raise CheckpointError(
                f"{build.checkpoint.label}: {name} has the shape {list(tensor.shape)}, and the model of config.json "
                f"wants {list(value(node).shape)}"
            )
        return tensor.reshape(-1).view(torch.uint8).numpy()

    build.weights = build.staging.write_weights(specs, fetch)
    parameters = sum(math.prod(spec.shape) for spec in specs)
    progress.say(f"{len(specs)} tensors, {parameters:,} values in {format_bytes(build.weights.num_bytes)}")


class _Rounding:
    """Rounds weights. Remembers the last one: its scales are asked for next."""

    def __init__(self, weights: ModelWeights) -> None:
        self._weights = weights
        self._last: tuple[tuple[str, ...], torch.Tensor, torch.Tensor] | None = None

    def round(self, source: ConstantSource) -> tuple[torch.Tensor, torch.Tensor]:
        """int8 [N, K], and its scales."""
        if self._last is None or self._last[0] != source.parts:
            whole = _joined(source, self._weights)
            is_int4 = source.form in (WeightForm.INT4, WeightForm.INT4_SCALE)
            rounded, scale = quantize_int4(whole, source.group) if is_int4 else quantize_int8(whole)
            self._last = (source.parts, rounded, scale)
        return self._last[1:]


def materialise(source: ConstantSource, weights: ModelWeights, rounding: _Rounding | None = None) -> torch.Tensor:
    """The constant as the program wants it, contiguous."""
    if source.form is WeightForm.PLAIN:
        return _joined(source, weights).contiguous()
    if source.form is WeightForm.PACKED:
        return pack_linear(_joined(source, weights))
    rounded, scale = (rounding or _Rounding(weights)).round(source)
    match source.form:
        case WeightForm.INT8:
            return pack_quantized(rounded)
        case WeightForm.INT8_SCALE:
            return scale
        case WeightForm.INT4:
            return pack_int4(rounded)
        case WeightForm.INT4_SCALE:
            return pack_int4_scale(scale)


def _joined(source: ConstantSource, weights: ModelWeights) -> torch.Tensor:
    parts = [weights.tensor(part) for part in source.parts]
    whole = (parts[0] if len(parts) == 1 else torch.cat(parts)).to(source.dtype)
    return whole.transpose(-2, -1) if source.transposed else whole

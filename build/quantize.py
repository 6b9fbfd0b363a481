"""Quantize: the checkpoint's tensors, joined, packed and cast as the graph wants them, streamed into the artifact."""

import math
from typing import Any

import torch

from pllm.build.model_source import ModelWeights
from pllm.build.pipeline import Build
from pllm.build.progress import StageProgress
from pllm.build.traced import ConstantSource, Traced, value
from pllm.kernels.packing import pack_linear
from pllm.runtime.errors import CheckpointError
from pllm.runtime.memory import format_bytes
from pllm.runtime.safetensors_file import TensorSpec

__all__ = ["materialise", "quantize"]

_NAMES = {torch.float32: "F32", torch.bfloat16: "BF16", torch.int64: "I64", torch.int32: "I32", torch.bool: "BOOL"}


def quantize(build: Build, progress: StageProgress) -> None:
    """Write every constant of the graph, one at a time: memory holds one weight and its packed form."""
    traced: Traced = build.exported
    names = traced.names()
    nodes = {names[node.name]: node for node in traced.graph.nodes if node.name in names}
    specs = [
        TensorSpec(name, _NAMES[value(node).dtype], tuple(map(int, value(node).shape))) for name, node in nodes.items()
    ]

    def fetch(name: str) -> Any:
        progress.show(name)
        node = nodes[name]
        tensor = materialise(traced.sources[node.name], build.model_weights)
        if tensor.shape != value(node).shape:
            raise CheckpointError(
                f"{build.checkpoint.label}: {name} has the shape {list(tensor.shape)}, and the model of config.json "
                f"wants {list(value(node).shape)}"
            )
        return tensor.reshape(-1).view(torch.uint8).numpy()

    build.weights = build.staging.write_weights(specs, fetch)
    parameters = sum(math.prod(spec.shape) for spec in specs)
    progress.say(f"{len(specs)} tensors, {parameters:,} values in {format_bytes(build.weights.num_bytes)}")


def materialise(source: ConstantSource, weights: ModelWeights) -> torch.Tensor:
    """The constant as the program wants it, contiguous."""
    parts = [weights.tensor(part) for part in source.parts]
    whole = parts[0] if len(parts) == 1 else torch.cat(parts)
    whole = whole.to(source.dtype)
    if source.transposed:
        whole = whole.transpose(-2, -1)
    return pack_linear(whole) if source.packed else whole.contiguous()

"""Export: the model's own module, traced by torch with our attention in it.

The inputs of the traced program are packed tokens, ``[T]`` of all sequences without padding; what paged attention needs
besides travels through the model's forward as keyword arguments.
"""

from collections.abc import Callable, Mapping
from typing import Any, cast

import torch
from torch.export import Dim, ExportedProgram

from pllm.build.model_source import ModelWeights, load_config, skeleton
from pllm.build.pipeline import Build
from pllm.build.progress import StageProgress
from pllm.build.traced import ConstantSource, Traced
from pllm.kernels.torch_operators import define_operators
from pllm.runtime.errors import BuildError, CheckpointError
from pllm.runtime.generation_config import GenerationConfig
from pllm.runtime.manifest import DimRange, KvInfo, ModelInfo, TensorInfo

__all__ = ["DIMS", "PackedForward", "export", "paged_attention", "program_inputs", "trace"]

_WRAPPER = "causal_lm."
_LAYER_TYPES = frozenset(("full_attention", "sliding_attention", "attention"))
"""By transformers' names. It tells those apart by masks, of which paged attention gets to know only the window."""

DIMS = {name: DimRange(min=1, max=2**31 - 1) for name in ("tokens", "sequences", "table_width", "rows", "blocks")}
DIMS |= {"boundaries": DimRange(min=2, max=2**31 - 1)}

# All different, and none of them 1: sizes that happen to be equal, or one, are taken for meant.
_EXAMPLE_SIZES = {
    "tokens": 6, "sequences": 2, "boundaries": 3, "table_width": 5, "rows": 4, "blocks": 16, "history_slots": 7,
}  # fmt: skip


def program_inputs(kv: KvInfo) -> tuple[TensorInfo, ...]:
    """The inputs of every program, in order."""
    return (
        TensorInfo(name="input_ids", dtype="int64", shape=("tokens",)),
        TensorInfo(name="positions", dtype="int64", shape=("tokens",)),
        TensorInfo(name="block_table", dtype="int32", shape=("sequences", "table_width")),
        TensorInfo(name="query_start", dtype="int32", shape=("boundaries",)),
        TensorInfo(name="context_len", dtype="int32", shape=("sequences",)),
        TensorInfo(name="logits_index", dtype="int64", shape=("rows",)),
        TensorInfo(name="kv", dtype=kv.dtype, shape=("blocks", *kv.block_shape)),
    )


class PackedForward(torch.nn.Module):
    """The model over packed tokens: the interface of our programs, in terms of transformers' forward.

    ``logits_to_keep`` takes the rows' indices: the head sees only the tokens that are sampled from.
    """

    def __init__(self, model: torch.nn.Module) -> None:
        super().__init__()
        self.causal_lm = model

    def forward(
        self,
        input_ids: torch.Tensor,
        positions: torch.Tensor,
        block_table: torch.Tensor,
        query_start: torch.Tensor,
        context_len: torch.Tensor,
        logits_index: torch.Tensor,
        kv: torch.Tensor,
    ) -> torch.Tensor:
        inputs = (input_ids, positions, block_table, query_start, context_len, logits_index, kv)
        return self.logits(*inputs)[0]

    def logits(
        self,
        input_ids: torch.Tensor,
        positions: torch.Tensor,
        block_table: torch.Tensor,
        query_start: torch.Tensor,
        context_len: torch.Tensor,
        logits_index: torch.Tensor,
        kv: torch.Tensor,
    ) -> torch.Tensor:
        """[1, R, V], as the model gives them."""
        out = self.causal_lm(
            input_ids=input_ids.unsqueeze(0),
            position_ids=positions.unsqueeze(0),
            attention_mask=None,
            use_cache=False,
            logits_to_keep=logits_index,
            pllm_kv=kv,
            pllm_block_table=block_table,
            pllm_query_start=query_start,
            pllm_context_len=context_len,
        )
        return cast("torch.Tensor", out.logits)


def paged_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float,
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux: torch.Tensor | None = None,
    **inputs: Any,
) -> tuple[torch.Tensor, None]:
    """What transformers calls instead of its own attention. query, key, value: ``[1, heads, T, head_dim]``."""
    if "pllm_kv" not in inputs:
        raise BuildError("its layers do not hand the forward's keyword arguments on to their attention")
    out = torch.ops.pllm.paged_attention(
        query,
        key,
        value,
        inputs["pllm_kv"],
        inputs["pllm_block_table"],
        inputs["pllm_query_start"],
        inputs["pllm_context_len"],
        s_aux,
        module.layer_idx,
        float(scaling),
        sliding_window or 0,
        float(softcap or 0.0),
    )
    return out, None


def export(build: Build, progress: StageProgress) -> None:
    """Trace the checkpoint's model. Raises BuildError for a model that cannot be traced, with the reason, and
    CheckpointError for a checkpoint that lacks some of its weights."""
    config = load_config(build.checkpoint)
    model = skeleton(config, paged_attention)
    name = type(model).__name__
    build.exported = trace(model, build.kv)
    build.model_weights = ModelWeights(model, build.checkpoint)
    parts = dict.fromkeys(part for source in build.exported.sources.values() for part in source.parts)
    lacking = [part for part in parts if part not in build.model_weights]
    if lacking:
        shown = ", ".join(lacking[:3]) + (", ..." if len(lacking) > 3 else "")
        raise CheckpointError(
            f"{build.checkpoint.label}: it lacks {len(lacking)} of the {len(parts)} weights of {name}: {shown}"
        )
    build.model = ModelInfo(
        architecture=name,
        vocab_size=config.vocab_size,
        context=build.facts.context,
        num_layers=build.facts.num_layers,
        num_kv_heads=build.facts.num_kv_heads,
        head_dim=build.facts.head_dim,
        num_parameters=model.num_parameters(),
        dtype=str(build.recipe.model.dtype),
        eos_token_ids=GenerationConfig.from_dict(build.checkpoint.generation_config).eos_token_ids,
    )
    progress.say(f"{name}: {model.num_parameters():,} parameters, {len(build.exported.graph.nodes)} nodes")


def trace(
    model: torch.nn.Module,
    kv: KvInfo,
    *,
    forward: Callable[[torch.nn.Module], torch.nn.Module] = PackedForward,
    inputs: tuple[TensorInfo, ...] = (),
    dims: Mapping[str, DimRange] = DIMS,
) -> Traced:
    """The traced graph of a model over :func:`paged_attention`. No weight is read or even touched.

    forward: wraps the model; it takes the inputs of every program, and then ``inputs``, whose symbolic sizes are of
    ``dims``. Raises BuildError for a model that torch.export cannot trace, or whose tokens would depend on others than
    its own.
    """
    define_operators()
    name = type(model).__name__
    _refuse_config(name, model)
    infos = (*program_inputs(kv), *inputs)
    examples = tuple(
        torch.zeros(
            [_EXAMPLE_SIZES[term] if isinstance(term, str) else term for term in info.shape],
            dtype=getattr(torch, info.dtype),
        )
        for info in infos
    )
    sizes = {term: Dim(term, min=limit.min) for term, limit in dims.items()}
    shapes = tuple(
        {axis: sizes[term] for axis, term in enumerate(info.shape) if isinstance(term, str)} for info in infos
    )
    try:
        with torch.no_grad():
            program = torch.export.export(forward(model), examples, dynamic_shapes=shapes, strict=False)
    except Exception as error:
        raise BuildError(f"{name} cannot be traced by torch.export: {_reason(error)}") from error
    traced = Traced(program, _sources(program, model))
    attending = len(traced.calls(torch.ops.pllm.paged_attention.default))
    if attending != kv.num_layers:
        raise BuildError(
            f"{name} cannot be built: {attending} of its {kv.num_layers} layers attend through transformers' "
            f"AttentionInterface, and what the others know of earlier tokens has no place in the KV pool"
        )
    return traced


def _refuse_config(name: str, model: torch.nn.Module) -> None:
    """Raise BuildError for what would trace and be wrong: layers that see other keys than a window of the latest, and
    angles that are chosen by the longest sequence of a batch."""
    config: Any = model.config
    text = config.get_text_config()
    # Some hybrids of transformers 5.17 name them by another attribute, and what we can serve by "attention" alone.
    kinds_of_layers = getattr(text, "layer_types", None) or getattr(text, "layers_block_type", None) or ()
    others = sorted(set(kinds_of_layers) - _LAYER_TYPES)
    if others:
        raise BuildError(
            f"{name} cannot be built: it has layers of the kind {', '.join(others)}, and those that can be served are "
            f"{', '.join(sorted(_LAYER_TYPES))}"
        )
    parameters = getattr(text, "rope_parameters", None) or {}
    kinds = [each.get("rope_type") for each in (parameters, *parameters.values()) if isinstance(each, dict)]
    for kind in ("dynamic", "longrope"):
        if kind in kinds:
            raise BuildError(
                f"{name} cannot be built: its RoPE scaling {kind!r} goes by the longest sequence of a batch, so that "
                f"tokens would depend on neighbours"
            )


def _reason(error: Exception) -> str:
    """torch.export's reason in a line: the first that says more than where to find more."""
    lines = [line.strip(" -") for line in str(error).strip().splitlines()]
    return next((line for line in lines if line and "TORCH_LOGS" not in line), type(error).__name__)


def _sources(program: ExportedProgram, model: torch.nn.Module) -> dict[str, ConstantSource]:
    """Every constant of a fresh trace, by the model's name of it."""
    tensors = dict(model.named_parameters(remove_duplicate=False)) | dict(model.named_buffers(remove_duplicate=False))
    sources = {}
    for spec in program.graph_signature.input_specs:
        if spec.target is not None:
            name = spec.target.removeprefix(_WRAPPER)
            if name not in tensors:
                raise BuildError(
                    f"{type(model).__name__} cannot be built: it computes with {name}, which is neither a parameter "
                    f"nor a buffer of its"
                )
            sources[spec.arg.name] = ConstantSource((name,), dtype=tensors[name].dtype)
    return sources

"""What a recipe leaves to "auto", decided once the checkpoint is known; and what cannot fit, refused then.

Only ``config.json`` and the headers of the weights have been read by then, so a refusal takes milliseconds.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from pllm.build.checkpoint import Checkpoint
from pllm.build.recipe import Recipe
from pllm.runtime.errors import BuildError, CheckpointError, DoesNotFitError, RecipeError
from pllm.runtime.gpu import Gpu, find_gpu
from pllm.runtime.machine import torch_cuda_version
from pllm.runtime.manifest import KvInfo
from pllm.runtime.memory import MemoryLedger, MemoryPlan, format_bytes
from pllm.runtime.scheduler_config import LOGIT_ROWS

__all__ = [
    "CONTEXT_LIMIT",
    "ModelFacts",
    "free_memory",
    "kv_info",
    "refuse_download",
    "refuse_what_cannot_fit",
    "resolve",
]

CONTEXT_LIMIT = 8192
"""The longest context that is chosen without being asked for: one sequence's KV must always fit."""

_KV_DTYPES = {"auto": "float32", "float32": "float32", "bf16": "bfloat16", "int8": "int8"}
_OLDEST_SM = 80
_ACTIVATION_BYTES = {"cpu": 4, "cuda": 2}
_VALUE_BYTES = {"float32": 4.0, "bf16": 2.0, "int8": 1.0, "int4": 0.5625}
"""A weight's; int4 with its share of a scale."""


@dataclass(frozen=True, slots=True)
class ModelFacts:
    """The numbers of ``config.json`` that memory depends on."""

    context: int
    num_layers: int
    num_kv_heads: int
    head_dim: int
    hidden_size: int
    vocab_size: int

    @classmethod
    def of(cls, config: Mapping[str, Any], label: str) -> "ModelFacts":
        """Raises CheckpointError for a configuration that does not say them."""
        text = config.get("text_config", config)

        def term(*names: str) -> int:
            for name in names:
                value = text.get(name) if isinstance(text, dict) else None
                if isinstance(value, int) and not isinstance(value, bool) and 0 < value < 2**31:
                    return value
            raise CheckpointError(f"{label}: config.json has no usable {names[0]}")

        heads, width = term("num_attention_heads", "n_head"), term("hidden_size", "n_embd")
        if width < heads:
            raise CheckpointError(f"{label}: config.json has more heads ({heads}) than its hidden size ({width})")
        return cls(
            context=term("max_position_embeddings", "n_positions"),
            num_layers=term("num_hidden_layers", "n_layer"),
            num_kv_heads=term("num_key_value_heads", "num_attention_heads", "n_head"),
            head_dim=term("head_dim") if text.get("head_dim") else width // heads,
            hidden_size=width,
            vocab_size=term("vocab_size"),
        )


def resolve(recipe: Recipe, checkpoint: Checkpoint, say: Callable[[str], None]) -> Recipe:
    """The recipe with every "auto" decided that does not depend on the machine that serves; each decision is said.

    ``engine.memory`` and ``engine.threads`` stay as they are: they are decided when the artifact is opened.
    Raises BuildError for a device that this version does not build for, RecipeError for a context beyond the model's.
    """
    on_gpu = recipe.device.kind == "cuda"
    if on_gpu:
        refusal = _no_cuda(find_gpu(), torch_cuda_version(), recipe)
        if refusal is not None:
            raise BuildError(refusal)
    facts = ModelFacts.of(checkpoint.config, checkpoint.label)
    recipe = recipe.with_values("device", kind="cuda" if on_gpu else "cpu")
    narrow = checkpoint.dtype == "BF16"
    if recipe.model.dtype == "auto":
        recipe = recipe.with_values("model", dtype="bfloat16" if narrow else "float32")
    if recipe.quantization.weights == "auto":
        chosen = "bf16" if narrow else "float32"
        if checkpoint.scheme is not None and recipe.device.kind != "cuda":
            chosen, why = checkpoint.scheme.storage
            say(f"the checkpoint is quantised ({checkpoint.scheme}): {why}")
        recipe = recipe.with_values("quantization", weights=chosen)
    if recipe.quantization.kv == "auto":
        narrow_kv = on_gpu and recipe.quantization.weights == "bf16"
        recipe = recipe.with_values("quantization", kv="bf16" if narrow_kv else "float32")
    engine = recipe.engine
    if isinstance(engine.max_model_len, str):
        recipe = recipe.with_values("engine", max_model_len=min(facts.context, CONTEXT_LIMIT))
    elif engine.max_model_len > facts.context:
        raise RecipeError(
            f"engine.max_model_len = {engine.max_model_len} is beyond the model's context of {facts.context} tokens "
            f"(max_position_embeddings of {checkpoint.label})"
        )
    if isinstance(engine.buckets, str):
        recipe = recipe.with_values("engine", buckets=_buckets(engine.max_num_seqs, on_gpu=on_gpu))
    arithmetic = "float32" if not on_gpu or recipe.quantization.weights == "float32" else "bfloat16"
    stored = f"weights stored as {recipe.quantization.weights}, KV as {recipe.quantization.kv}"
    say(f"{recipe.device.kind}, {stored}, arithmetic {arithmetic}")
    say(f"context {recipe.engine.max_model_len} of {facts.context}, up to {engine.max_num_seqs} sequences at once")
    return recipe


def _buckets(most: int, *, on_gpu: bool) -> tuple[int, ...]:
    """1, 2, 4, 8, then powers of two, or on a GPU, where a graph is cheap, every multiple of 8."""
    powers = [1 << bit for bit in range(most.bit_length()) if 1 << bit < most]
    if on_gpu:
        powers = [rows for rows in powers if rows < 8] + list(range(8, most, 8))
    return (*powers, most)


def _no_cuda(gpu: Gpu | None, torch_cuda: str, recipe: Recipe) -> str | None:
    """Why nothing can be built for CUDA here; a program is compiled and measured on the GPU that it is for."""
    if gpu is None:
        return (
            'device.kind = "cuda" needs a GPU to compile for and to measure on, and none can be used here (no NVIDIA '
            'driver, no device visible, or all memory taken): set device.kind = "cpu", or build where there is one'
        )
    if not torch_cuda:
        return (
            f"a program for {gpu.name} ({gpu.sm}) is compiled by torch's CUDA build, and the installed torch is one "
            f'without CUDA: install another, or set device.kind = "cpu"'
        )
    if int(gpu.sm.removeprefix("sm_")) < _OLDEST_SM:
        return f'{gpu.name} is {gpu.sm}, and the kernels need sm_{_OLDEST_SM} or later: set device.kind = "cpu"'
    stored = recipe.quantization
    for key, given, known in (
        ("weights", stored.weights, ("auto", "float32", "bf16")),
        ("kv", stored.kv, ("auto", "float32", "bf16")),
    ):
        if given not in known:
            return f'quantization.{key} = "{given}" is for a CPU in this version: on CUDA take {", ".join(known)}'
    return None


def free_memory(recipe: Recipe, of_the_machine: int) -> int:
    """Bytes that a resolved recipe's device has free. Raises BuildError where its GPU is gone."""
    if recipe.device.kind == "cpu":
        return of_the_machine
    gpu = find_gpu()
    if gpu is None:
        raise BuildError("the GPU that was there a moment ago is gone: see nvidia-smi")
    return gpu.free_memory


def kv_info(recipe: Recipe, facts: ModelFacts) -> KvInfo:
    """The KV cache that a recipe asks for."""
    return KvInfo(
        dtype=_KV_DTYPES[recipe.quantization.kv],
        num_layers=facts.num_layers,
        num_kv_heads=facts.num_kv_heads,
        block_size=recipe.engine.block_size,
        head_dim=facts.head_dim,
    )


def refuse_what_cannot_fit(recipe: Recipe, checkpoint: Checkpoint, available: int, say: Callable[[str], None]) -> None:
    """Raise DoesNotFitError (exit 2) where a resolved recipe's weights and one sequence exceed the available bytes.

    A forecast from headers: of activations, which only the profile stage knows, it counts the logits or the hidden
    states before and after a norm, whichever are more; of libraries nothing.
    """
    values = sum(_elements(stored.entry.shape) for stored in checkpoint.tensors.values())
    weights = int(values * _VALUE_BYTES[recipe.quantization.weights])
    facts = ModelFacts.of(checkpoint.config, checkpoint.label)
    assert isinstance(recipe.engine.max_model_len, int)
    _refuse(recipe, facts, weights, recipe.engine.max_model_len, available)
    kv = kv_info(recipe, facts)
    say(
        f"{values / 1e6:.1f} M parameters, {format_bytes(weights)} of weights, "
        f"{format_bytes(kv.block_bytes)} a block of {kv.block_size} tokens"
    )


def refuse_download(recipe: Recipe, config: Mapping[str, Any], num_bytes: int, available: int) -> None:
    """Raise DoesNotFitError (exit 2) where a model of the Hub would not fit, from its configuration and the size of its
    weights alone: the recipe is not resolved yet, and weights count as they are stored."""
    facts = ModelFacts.of(config, recipe.model.source)
    asked = recipe.engine.max_model_len
    context = min(facts.context, CONTEXT_LIMIT) if isinstance(asked, str) else asked
    _refuse(recipe, facts, num_bytes, context, available)


def _refuse(recipe: Recipe, facts: ModelFacts, weights: int, max_model_len: int, available: int) -> None:
    engine = recipe.engine
    tokens = min(engine.max_num_batched_tokens, engine.max_num_seqs * max_model_len)
    logits = min(max(LOGIT_ROWS, engine.max_num_seqs), tokens) * facts.vocab_size
    values = max(logits, 2 * tokens * facts.hidden_size)
    activations = _ACTIVATION_BYTES.get(recipe.device.kind, 2) * values
    ledger = MemoryLedger(
        weights=weights, activations=activations, runtime=0, kv_block=kv_info(recipe, facts).block_bytes
    )
    try:
        MemoryPlan.solve(
            ledger,
            block_size=engine.block_size,
            max_model_len=max_model_len,
            max_num_seqs=engine.max_num_seqs,
            memory=engine.memory,
            available=available,
        )
    except DoesNotFitError as error:
        raise DoesNotFitError(f"{recipe.name}: {error}", exit_code=2) from None


def _elements(shape: tuple[int, ...]) -> int:
    count = 1
    for extent in shape:
        count *= extent
    return count

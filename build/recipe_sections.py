"""The sections of a recipe: frozen dataclasses whose every key says what it takes and what it means.

The checks, the reference page (recipes/README.md) and ``pllm init`` are made from these.
"""

from collections.abc import Mapping
from dataclasses import MISSING, Field, dataclass, field
from pathlib import Path
from typing import Any

from pllm.build.recipe_values import Choice, Memory, Number, OneOrList, Table, Text, Texts, Value, Whole

__all__ = [
    "SECTIONS",
    "DeviceSection",
    "EngineSection",
    "Key",
    "ModelSection",
    "QuantizationSection",
    "StructuredOutputsSection",
    "VerifySection",
    "key_of",
]

_LATER = "not in this version"


@dataclass(frozen=True, slots=True)
class Key:
    """What a recipe's key takes, and its line of the reference."""

    value: Value
    doc: str
    example: Any = None
    """For a key that has no default."""


def _key(value: Value, doc: str, default: Any = MISSING, *, example: Any = None) -> Any:
    metadata = {"key": Key(value, doc, example)}
    if isinstance(value, Table):
        return field(default_factory=dict, metadata=metadata)
    return field(metadata=metadata) if default is MISSING else field(default=default, metadata=metadata)


def key_of(item: "Field[Any]") -> Key:
    """The :class:`Key` of a section's field."""
    key = item.metadata["key"]
    assert isinstance(key, Key)
    return key


@dataclass(frozen=True, kw_only=True)
class ModelSection:
    """Which model, and from where."""

    source: str = _key(
        Text(),
        "The checkpoint: a directory (relative to the recipe) or a Hub id such as `Qwen/Qwen3-0.6B`. With random "
        "weights: a directory that holds a `config.json`, or any name where `[model.config]` is given.",
    )
    revision: str = _key(Text(), "The Hub's branch, tag or commit. Pin a commit for builds that repeat.", "main")
    dtype: str = _key(
        Choice(("auto", "float32", "bfloat16")),
        "The precision of the reference model that the artifact is certified against; auto is the checkpoint's own.",
        "auto",
    )
    weights: str = _key(
        Choice(("checkpoint", "random")),
        "`checkpoint` reads the source's weights; `random` draws them from a normal distribution, for measuring speed.",
        "checkpoint",
    )
    seed: int = _key(Whole(0, 2**32 - 1), "The seed of random weights.", 0)
    tokenizer_size: int = _key(
        Whole(300, 1_000_000), "With random weights: entries of the tokenizer that is trained on the spot.", 32000
    )
    config: Mapping[str, Any] = _key(
        Table(), "With random weights: the model's configuration, in the words of transformers' `config.json`."
    )


@dataclass(frozen=True, kw_only=True)
class DeviceSection:
    """Where the artifact will run."""

    kind: str = _key(
        Choice(("auto", "cpu", "cuda")), "The kind of device; auto is the best that this version builds for.", "auto"
    )


@dataclass(frozen=True, kw_only=True)
class EngineSection:
    """The limits that the artifact is built and measured for. `pllm run` may lower them."""

    max_model_len: int | str = _key(
        Whole(16, 2**24, words=("auto",)),
        "The longest sequence, prompt and answer together, in tokens; auto is the model's own context, at most 8192.",
        "auto",
    )
    max_num_seqs: int = _key(Whole(1, 4096), "Sequences that run at once; more wait.", 32)
    max_num_batched_tokens: int = _key(
        Whole(16, 2**20), "Tokens of one step, over all its sequences. It bounds the activations' memory.", 512
    )
    memory: str | float | int = _key(
        Memory(),
        "What the engine may hold in all, weights included. auto takes what max_num_seqs sequences need, at most half "
        "of what the weights leave free. Decided again whenever the artifact is opened.",
        "auto",
    )
    block_size: int = _key(Whole(16, 256, step=16), "Tokens of one block of the KV cache.", 16)
    buckets: tuple[int, ...] | str = _key(
        OneOrList(1, 4096),
        "Batch sizes that decode is measured for (and, on CUDA, captured for); auto is 1, 2, 4, 8 and so on up to "
        "max_num_seqs, on CUDA in steps of 8 from there.",
        "auto",
    )
    inter_token_target_ms: float | None = _key(
        Number(1, 60_000),
        "The longest pause between two tokens that a running sequence should see, in milliseconds: it bounds how much "
        "of others' prompts one step may compute. Without it a step is bounded by max_num_batched_tokens, and by half "
        "a second.",
        None,
        example=100.0,
    )
    threads: int | str = _key(
        Whole(1, 1024, words=("auto",)),
        "CPU threads of the engine; auto is what the build's steps ran fastest with, or, on a machine with other cores "
        "than the build's, as many as there are.",
        "auto",
    )


@dataclass(frozen=True, kw_only=True)
class QuantizationSection:
    """How numbers are stored. Arithmetic is float32 on a CPU, but for products with int8 and int4 weights."""

    weights: str = _key(
        Choice(("auto", "float32", "bf16", "int8", "int4")),
        "How weights are stored; auto is bf16 where the checkpoint is bfloat16 (nothing is lost), else float32; where "
        "it is quantised (GPTQ, AWQ, compressed-tensors), it is the narrowest that its numbers fit. int8 "
        "has a scale for each output, int4 one for each output and 32 inputs; with either, what enters a product is "
        "rounded to int8, token by token. Tables and heads are never int4.",
        "auto",
    )
    kv: str = _key(
        Choice(("auto", "float32", "bf16", "int8"), {"fp8": _LATER}),
        "How the KV cache is stored; auto is float32, on CUDA as the weights are. bf16 halves its memory and its "
        "reads, and rounds; int8, with a scale for each key and value of a head, about quarters them.",
        "auto",
    )


@dataclass(frozen=True, kw_only=True)
class VerifySection:
    """What the certificate demands. A build that misses it fails."""

    max_logit_error: float | str = _key(
        Number(0, 100, words=("auto",)),
        "The largest difference of any logit from the reference's, on the reference's own tokens. auto is 0.001 where "
        "weights and KV are stored exactly; else 2% (KV in bf16), 5% (weights or KV in int8) or 25% (int4) of the "
        "reference's spread, its largest logit less its smallest.",
        "auto",
    )
    max_kl_divergence: float | str = _key(
        Number(0, 100, words=("auto",)),
        "The largest Kullback-Leibler divergence of the next token's distribution from the reference's, in nats, mean "
        "over those tokens. auto is 0.00001, and 0.001 (KV in bf16), 0.005 (in int8), 0.02 (weights in int8) or 0.3 "
        "(in int4) where something is rounded.",
        "auto",
    )
    max_skipped_share: float | str = _key(
        Number(0, 1, words=("auto",)),
        "The largest share of tokens whose top two logits in the reference lie within twice max_logit_error, so that "
        "either token is right and none is compared. auto is 0.05, and 1 where something is rounded.",
        "auto",
    )
    golden_prompts: int = _key(
        Whole(1, 64), "Prompts whose tokens are stored in the artifact and replayed by verify.", 4
    )
    golden_tokens: int = _key(Whole(1, 256), "Tokens that each of them is continued by.", 16)


@dataclass(frozen=True, kw_only=True)
class StructuredOutputsSection:
    """Forms of answers that come with the model, tried out by the build: a request names one instead of sending it."""

    schemas: tuple[str, ...] = _key(
        Texts(),
        "JSON schemas: files (relative to the recipe) `NAME.json`. A request's `response_format` of type `json_schema` "
        "that gives the name and no schema means the one of that name.",
        (),
    )
    grammars: tuple[str, ...] = _key(
        Texts(),
        "Grammars in Lark, as llguidance reads it, or GBNF: files `NAME.lark`, `NAME.gbnf`. A request's "
        "`structured_outputs.grammar` may be the name.",
        (),
    )

    def files(self, folder: Path) -> list[tuple[str, Path]]:
        """Each named file, and the key that names it. ``folder``: what a relative name is relative to."""
        named = [("structured_outputs.schemas", name) for name in self.schemas]
        named += [("structured_outputs.grammars", name) for name in self.grammars]
        return [(key, folder / Path(name).expanduser()) for key, name in named]


SECTIONS: Mapping[str, type[Any]] = {
    "model": ModelSection,
    "device": DeviceSection,
    "engine": EngineSection,
    "quantization": QuantizationSection,
    "structured_outputs": StructuredOutputsSection,
    "verify": VerifySection,
}
"""By their names in the file."""

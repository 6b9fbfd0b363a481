"""Checkpoints with random weights: a real configuration, to measure speed and memory where nothing can be downloaded.

Weights are drawn from a normal distribution with standard deviation 0.02 (norms are 1) and written as bfloat16, which
has few values, so a draw is a look-up: 16 random bits choose one of 65,536 quantiles of the distribution. That takes
about a second of one core for 0.6 billion weights, and depends on nothing but SFC64's bits, which numpy promises to
keep. Each tensor has a generator of its own, seeded with the recipe's seed and the tensor's name.

The tokenizer is a byte-level BPE trained on the source of Python's standard library.
"""

import fcntl
import hashlib
import json
import shutil
import sysconfig
import tempfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from statistics import NormalDist
from typing import TYPE_CHECKING, Any

import msgspec

from pllm.build.recipe import Recipe
from pllm.runtime.errors import CheckpointError
from pllm.runtime.safetensors_file import TensorSpec, write_safetensors
from pllm.runtime.user_cache import user_cache

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

__all__ = ["parameter_shapes", "random_checkpoint"]

_FORMAT = 1
"""Raised when the same recipe would give other files, so that old ones are not taken for new."""

_STANDARD_DEVIATION = 0.02
_DRAW = 1 << 20
_FAMILIES = ("llama", "mistral", "qwen2", "qwen3")
_TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja")
_SPECIALS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
_SPLIT = (  # the split of the Qwen2 family's tokenizers
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def random_checkpoint(recipe: Recipe) -> Path:
    """The directory of the recipe's random checkpoint, in the user's cache: generated at the first call, found later.

    Raises CheckpointError for a configuration that is incomplete or of a family we cannot lay out.
    """
    config, given = _configuration(recipe)
    shapes = parameter_shapes(config, origin=recipe.name)
    terms = [_FORMAT, recipe.model.seed, recipe.model.tokenizer_size, config, str(given) if given else None]
    digest = hashlib.sha256(msgspec.json.encode(terms, order="sorted")).hexdigest()[:16]
    home = user_cache() / "checkpoints"
    target = home / f"{recipe.name}-{digest}"
    if target.is_dir():
        return target
    home.mkdir(parents=True, exist_ok=True)
    with (home / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # a second build of the same checkpoint waits and then finds it
        if not target.is_dir():
            for dead in home.glob(".partial-*"):
                shutil.rmtree(dead, ignore_errors=True)
            partial = Path(tempfile.mkdtemp(prefix=".partial-", dir=home))
            try:
                _generate(partial, config, given, recipe, shapes)
                partial.rename(target)
            except BaseException:
                shutil.rmtree(partial, ignore_errors=True)
                raise
    return target


def parameter_shapes(config: Mapping[str, Any], *, origin: str) -> list[TensorSpec]:
    """Names and shapes of the parameters of a dense decoder of the Llama kind, as transformers names them.

    Raises CheckpointError, naming ``origin``, for other kinds and for a configuration that lacks a term.
    """
    family = config.get("model_type")
    if family not in _FAMILIES:
        raise CheckpointError(f"{origin}: random weights are drawn for {', '.join(_FAMILIES)}, not for {family!r}")

    def term(name: str, default: int | None = None) -> int:
        value = config.get(name, default)
        if not isinstance(value, int) or isinstance(value, bool) or not 0 < value < 2**31:
            raise CheckpointError(f"{origin}: model.config.{name} must be a positive integer, not {value!r}")
        return value

    hidden, heads = term("hidden_size"), term("num_attention_heads")
    head = term("head_dim", hidden // heads)
    kv, inner, vocab = term("num_key_value_heads", heads), term("intermediate_size"), term("vocab_size")
    shapes: list[tuple[str, tuple[int, ...]]] = [("model.embed_tokens.weight", (vocab, hidden))]

    def linear(name: str, out: int, into: int, bias: bool) -> None:
        shapes.append((f"{name}.weight", (out, into)))
        if bias:
            shapes.append((f"{name}.bias", (out,)))

    bias = bool(config.get("attention_bias", False))
    for index in range(term("num_hidden_layers")):
        layer = f"model.layers.{index}"
        shapes.append((f"{layer}.input_layernorm.weight", (hidden,)))
        for name, out in (("q", heads * head), ("k", kv * head), ("v", kv * head)):
            linear(f"{layer}.self_attn.{name}_proj", out, hidden, bias or family == "qwen2")
        linear(f"{layer}.self_attn.o_proj", hidden, heads * head, bias)
        if family == "qwen3":
            shapes += [(f"{layer}.self_attn.{name}_norm.weight", (head,)) for name in ("q", "k")]
        shapes.append((f"{layer}.post_attention_layernorm.weight", (hidden,)))
        for name, out, into in (("gate", inner, hidden), ("up", inner, hidden), ("down", hidden, inner)):
            linear(f"{layer}.mlp.{name}_proj", out, into, bool(config.get("mlp_bias", False)))
    shapes.append(("model.norm.weight", (hidden,)))
    if not config.get("tie_word_embeddings", False):
        shapes.append(("lm_head.weight", (vocab, hidden)))
    return [TensorSpec(name, "BF16", shape) for name, shape in shapes]


def _configuration(recipe: Recipe) -> tuple[dict[str, Any], Path | None]:
    """The model's configuration, and the directory it came from where the recipe does not give it inline."""
    if recipe.model.config:
        return dict(recipe.model.config), None
    directory = recipe.source_directory()
    if directory is None:
        raise CheckpointError(
            f"{recipe.name}: random weights need a configuration: give [model.config], or a directory that has one"
        )
    try:
        with (directory / "config.json").open("rb") as file:
            return msgspec.json.decode(file.read(1 << 20), type=dict[str, Any]), directory.resolve()
    except OSError as error:
        raise CheckpointError(f"{directory / 'config.json'}: {error.strerror}") from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise CheckpointError(f"{directory / 'config.json'} is malformed: {error}") from None


def _generate(
    target: Path, config: Mapping[str, Any], given: Path | None, recipe: Recipe, specs: list[TensorSpec]
) -> None:
    """Write a whole checkpoint into the empty folder ``target``."""
    config = {"dtype": "bfloat16", **config}
    if given and (given / "tokenizer.json").is_file():
        for name in _TOKENIZER_FILES:
            if (given / name).is_file():
                shutil.copyfile(given / name, target / name)
    else:
        ends = _train_tokenizer(target, min(recipe.model.tokenizer_size, int(config["vocab_size"])))
        config = {**ends, **config}
    (target / "config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    ids = {name: config[name] for name in ("bos_token_id", "eos_token_id", "pad_token_id") if name in config}
    (target / "generation_config.json").write_text(json.dumps(ids, indent=2) + "\n", encoding="utf-8")
    quantiles = _quantiles()
    shapes = {spec.name: spec.shape for spec in specs}
    write_safetensors(
        target / "model.safetensors",
        specs,
        lambda name: _values(name, shapes[name], recipe.model.seed, quantiles),
        {"format": "pt"},
    )


def _values(name: str, shape: tuple[int, ...], seed: int, quantiles: "NDArray[np.uint16]") -> "NDArray[np.uint16]":
    """One parameter's values, as the bits of bfloat16."""
    import numpy as np  # noqa: PLC0415

    if name.endswith("norm.weight"):
        return np.full(shape, 0x3F80, dtype=np.uint16)  # 1.0
    values = np.empty(shape, dtype=np.uint16)
    flat = values.reshape(-1)
    generator = np.random.SFC64(np.random.SeedSequence([seed, zlib.crc32(name.encode())]))
    for start in range(0, flat.size, _DRAW):
        piece = flat[start : start + _DRAW]
        words = generator.random_raw(-(-piece.size // 4)).astype("<u8", copy=False)
        np.take(quantiles, words.view("<u2")[: piece.size], out=piece, mode="clip")  # "raise" would buffer out
    return values


def _quantiles() -> "NDArray[np.uint16]":
    """65,536 equally likely values of the normal distribution, rounded to bfloat16 (to nearest), as bits."""
    import numpy as np  # noqa: PLC0415

    normal = NormalDist(0.0, _STANDARD_DEVIATION)
    values = np.array([normal.inv_cdf((index + 0.5) / 65536) for index in range(65536)], dtype=np.float32)
    return ((values.view(np.uint32) + 0x8000) >> 16).astype(np.uint16)


def _train_tokenizer(target: Path, size: int) -> dict[str, int | None]:
    """Train and write the tokenizer; the ids of the tokens that end and pad, for the model's configuration."""
    # tokenizers is needed here only.
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers  # noqa: PLC0415

    corpus = sorted(str(path) for path in Path(sysconfig.get_path("stdlib")).glob("*.py"))
    if not corpus:
        raise CheckpointError("this Python carries no source of its standard library to train a tokenizer on")
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_SPLIT), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=list(_SPECIALS),
        show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    tokenizer.train(corpus, trainer)
    tokenizer.save(str(target / "tokenizer.json"))
    described = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": "<|im_end|>",
        "pad_token": "<|endoftext|>",
        "clean_up_tokenization_spaces": False,
        "chat_template": _CHAT_TEMPLATE,
    }
    (target / "tokenizer_config.json").write_text(json.dumps(described, indent=2) + "\n", encoding="utf-8")
    return {"eos_token_id": tokenizer.token_to_id("<|im_end|>"), "pad_token_id": tokenizer.token_to_id("<|endoftext|>")}

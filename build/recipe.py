"""The recipe: what to build, as the user wrote it, checked in full before anything is loaded.

Each section is a frozen dataclass, and each key carries its kind of value and one line of documentation: the checks,
the reference page (recipes/README.md) and ``pllm init`` are made from these. Nothing here imports torch or
transformers.
"""

import dataclasses
import difflib
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, Field, dataclass, field, fields
from pathlib import Path
from typing import Any, ClassVar

import tomli

from pllm.build.recipe_values import Choice, Memory, Number, OneOrList, Table, Text, Value, Whole
from pllm.build.toml_text import toml_text
from pllm.runtime.errors import RecipeError

__all__ = ["DeviceSection", "EngineSection", "ModelSection", "QuantizationSection", "Recipe", "VerifySection", "key_of"]

_LATER = "not in this version"
_MAX_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class Key:
    """What a recipe's key takes, and its line of the reference."""

    value: Value
    doc: str


def _key(value: Value, doc: str, default: Any = MISSING) -> Any:
    metadata = {"key": Key(value, doc)}
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
        "max_num_seqs.",
        "auto",
    )
    inter_token_target_ms: float | None = _key(
        Number(1, 60_000),
        "The longest pause between two tokens that a running sequence should see, in milliseconds: it bounds how much "
        "of others' prompts one step may compute. Without it the step is bounded by max_num_batched_tokens only.",
        None,
    )
    threads: int | str = _key(
        Whole(1, 1024, words=("auto",)), "CPU threads of the engine; auto is the cores it may use.", "auto"
    )


@dataclass(frozen=True, kw_only=True)
class QuantizationSection:
    """How numbers are stored. Arithmetic is float32 on a CPU, whatever is stored."""

    weights: str = _key(
        Choice(("auto", "float32", "bf16"), {"int8": _LATER, "int4": _LATER}),
        "How weights are stored; auto is bf16 where the checkpoint is bfloat16 (nothing is lost), else float32.",
        "auto",
    )
    kv: str = _key(
        Choice(("auto", "float32", "bf16"), {"int8": _LATER, "fp8": _LATER}),
        "How the KV cache is stored; auto is float32. bf16 halves its memory and its reads, and rounds.",
        "auto",
    )


@dataclass(frozen=True, kw_only=True)
class VerifySection:
    """What the certificate demands. A build that misses it fails."""

    max_logit_error: float = _key(
        Number(0, 100),
        "The largest difference of any logit from the reference's, on the reference's own tokens.",
        0.001,
    )
    max_skipped_share: float = _key(
        Number(0, 1),
        "The largest share of tokens whose top two logits in the reference lie within twice max_logit_error, so that "
        "either token is right and none is compared.",
        0.05,
    )
    golden_prompts: int = _key(
        Whole(1, 64), "Prompts whose tokens are stored in the artifact and replayed by verify.", 4
    )
    golden_tokens: int = _key(Whole(1, 256), "Tokens that each of them is continued by.", 16)


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """A checked recipe. Every value is of its kind and in its range."""

    SECTIONS: ClassVar[Mapping[str, type[Any]]] = {
        "model": ModelSection,
        "device": DeviceSection,
        "engine": EngineSection,
        "quantization": QuantizationSection,
        "verify": VerifySection,
    }

    name: str
    """The artifact's name: `name` at the top of the file, else the file's own."""
    folder: Path
    """What a relative source is relative to."""
    model: ModelSection
    device: DeviceSection = field(default_factory=DeviceSection)
    engine: EngineSection = field(default_factory=EngineSection)
    quantization: QuantizationSection = field(default_factory=QuantizationSection)
    verify: VerifySection = field(default_factory=VerifySection)

    @classmethod
    def load(cls, path: Path | str, overrides: Sequence[str] = ()) -> "Recipe":
        """Read and check a recipe file; ``overrides`` are ``section.key=value`` strings, applied before the checks.

        Raises RecipeError naming the file, with the place for broken TOML and with every mistake at once otherwise.
        """
        path = Path(path)
        try:
            with path.open("rb") as file:
                raw = file.read(_MAX_BYTES + 1)
            text = raw.decode("utf-8")
        except OSError as error:
            raise RecipeError(f"{path}: {error.strerror or error}") from None
        except UnicodeDecodeError as error:
            raise RecipeError(f"{path}: byte {error.start} is not UTF-8, which TOML demands") from None
        if len(raw) > _MAX_BYTES:
            raise RecipeError(f"{path}: more than {_MAX_BYTES} bytes are no recipe")
        try:
            table = tomli.loads(text)
        except tomli.TOMLDecodeError as error:
            raise RecipeError(_toml_message(path, error)) from None
        except RecursionError:
            raise RecipeError(f"{path}: values are nested too deeply") from None
        return cls.from_table(table, name=path.stem, folder=path.parent, overrides=overrides, origin=str(path))

    @classmethod
    def for_model(cls, source: str, overrides: Sequence[str] = ()) -> "Recipe":
        """The recipe of a checkpoint directory or Hub id with everything else left to its defaults."""
        directory = Path(source).expanduser()
        found = directory.is_dir()
        name = (directory.resolve().name if found else source.rstrip("/").rsplit("/", 1)[-1]).lower()
        table = {"model": {"source": str(directory.resolve()) if found else source}}
        return cls.from_table(table, name=name, folder=Path.cwd(), overrides=overrides, origin=source)

    @classmethod
    def from_table(
        cls, table: Mapping[str, Any], *, name: str, folder: Path, overrides: Sequence[str] = (), origin: str = "recipe"
    ) -> "Recipe":
        """Check a parsed recipe. Raises RecipeError that lists every mistake, each with its dotted key."""
        table, mistakes = _overridden(table, overrides)
        given = table.pop("name", name)
        if not _is_name(given):
            mistakes.append(f"name must be letters, digits, '.', '_' and '-', not beginning with '.', not {given!r}")
        mistakes += _unknown(table, ["name", *cls.SECTIONS], "")
        sections: dict[str, Any] = {}
        for section, kind in cls.SECTIONS.items():
            values = table.get(section, {})
            if isinstance(values, dict):
                sections[section] = _section(kind, section, values, mistakes)
            else:
                mistakes.append(f"{section} must be a table: write [{section}]")
        if not mistakes:
            recipe = cls(name=given, folder=folder, **sections)
            mistakes = recipe._contradictions()
        if mistakes:
            count = "1 mistake" if len(mistakes) == 1 else f"{len(mistakes)} mistakes"
            raise RecipeError(f"{origin}: {count}\n" + "\n".join(f"  {mistake}" for mistake in mistakes))
        return recipe

    def with_values(self, section: str, **values: Any) -> "Recipe":
        """The recipe with keys of one section decided, as the build resolves what was "auto"."""
        changed: Any = dataclasses.replace(getattr(self, section), **values)
        return dataclasses.replace(self, **{section: changed})

    def source_directory(self) -> Path | None:
        """The directory that ``model.source`` names, if it names one that exists or is written like a path."""
        source = self.model.source
        path = self.folder / Path(source).expanduser()
        written_as_path = source.startswith((".", "/", "~"))
        return path if written_as_path or path.is_dir() else None

    def lock_text(self) -> str:
        """This recipe in full as TOML: what ``recipe.lock.toml`` holds. It names no path of this machine: an absolute
        source is given by its last part."""
        table: dict[str, Any] = {"name": self.name}
        for section in self.SECTIONS:
            table[section] = {
                item.name: getattr(getattr(self, section), item.name) for item in fields(self.SECTIONS[section])
            }
        if self.source_directory() is not None and Path(self.model.source).expanduser().is_absolute():
            table["model"]["source"] = Path(self.model.source).name
        if not self.model.config:
            del table["model"]["config"]
        return toml_text(table)

    @property
    def fingerprint(self) -> str:
        """SHA-256 of :meth:`lock_text`."""
        return hashlib.sha256(self.lock_text().encode()).hexdigest()

    def _contradictions(self) -> list[str]:
        """Keys that are right alone and wrong together."""
        engine, found = self.engine, []
        if engine.max_num_batched_tokens < engine.max_num_seqs:
            found.append(
                f"engine.max_num_batched_tokens ({engine.max_num_batched_tokens}) must be at least engine.max_num_seqs "
                f"({engine.max_num_seqs}): each running sequence takes one token a step"
            )
        if not isinstance(engine.buckets, str) and engine.buckets[-1] > engine.max_num_seqs:
            found.append(
                f"engine.buckets: {engine.buckets[-1]} is more than engine.max_num_seqs ({engine.max_num_seqs})"
            )
        if self.model.config and self.model.weights != "random":
            found.append('model.config is for model.weights = "random"; a checkpoint brings its own config.json')
        return found


def _section(kind: type[Any], section: str, values: dict[str, Any], mistakes: list[str]) -> Any:
    """The section's dataclass, or None after noting what is wrong with it."""
    known = {item.name: item for item in fields(kind)}
    before = len(mistakes)
    mistakes += _unknown(values, list(known), f"{section}.")
    checked: dict[str, Any] = {}
    for name, item in known.items():
        if name in values:
            try:
                checked[name] = key_of(item).value.check(values[name])
            except ValueError as error:
                mistakes.append(f"{section}.{name} {error}")
        elif item.default is MISSING and item.default_factory is MISSING:
            mistakes.append(f"{section}.{name} is missing: {key_of(item).value.describe()}")
    return kind(**checked) if len(mistakes) == before else None


def _unknown(table: Mapping[str, Any], known: Sequence[str], prefix: str) -> list[str]:
    """One line for each key that nobody knows, with the nearest known one; a key at home elsewhere is sent there."""
    homes = {item.name: section for section, kind in Recipe.SECTIONS.items() for item in fields(kind)}
    lines = []
    for name in table:
        if name in known:
            continue
        near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
        elsewhere = [name] if name in homes else difflib.get_close_matches(name, list(homes), n=1, cutoff=0.75)
        if elsewhere and (name in homes or not near):
            hint = f"did you mean {homes[elsewhere[0]]}.{elsewhere[0]}?"
        elif near:
            hint = f"did you mean {prefix}{near[0]}?"
        else:
            hint = f"the keys are {', '.join(known)}"
        lines.append(f"{prefix}{name} is not a key: {hint}")
    return lines


def _overridden(table: Mapping[str, Any], overrides: Sequence[str]) -> tuple[dict[str, Any], list[str]]:
    """A copy of the table with ``section.key=value`` strings applied, and what is wrong with them."""
    result = {name: dict(value) if isinstance(value, dict) else value for name, value in table.items()}
    mistakes = []
    for override in overrides:
        dotted, equals, raw = override.partition("=")
        *path, name = dotted.strip().split(".")
        if not equals or not name or not all(path):
            mistakes.append(f"--set {override}: write --set section.key=value")
            continue
        place: Any = result
        for part in path:
            place = place.setdefault(part, {}) if isinstance(place, dict) else None
        if isinstance(place, dict):
            place[name] = _override_value(raw.strip())
        else:
            mistakes.append(f"--set {override}: {'.'.join(path)} is not a table")
    return result, mistakes


def _override_value(raw: str) -> Any:
    """The text after ``=`` as TOML; what is not TOML is a string, so that quotes may be left out."""
    try:
        parsed = tomli.loads(f"value = {raw}")
    except (tomli.TOMLDecodeError, RecursionError):
        return raw
    return parsed["value"] if len(parsed) == 1 else raw


def _is_name(name: object) -> bool:
    plain = isinstance(name, str) and name and not name.startswith((".", "-")) and len(name) <= 200
    return bool(plain and isinstance(name, str) and all(c.isascii() and (c.isalnum() or c in "._-") for c in name))


def _toml_message(path: Path, error: tomli.TOMLDecodeError) -> str:
    """``file:line:column: what``, the line, and a caret under the place."""
    lines = error.doc.splitlines()
    line = lines[error.lineno - 1] if error.lineno <= len(lines) else ""
    start = max(0, error.colno - 60)
    shown = line[start : start + 100].replace("\t", " ")
    return f"{path}:{error.lineno}:{error.colno}: {error.msg}\n  {shown}\n  {' ' * (error.colno - 1 - start)}^"

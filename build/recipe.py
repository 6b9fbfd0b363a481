"""The recipe: what to build, as the user wrote it, checked in full before anything is loaded.

Nothing here imports torch or transformers.
"""

import dataclasses
import difflib
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, dataclass, field, fields
from pathlib import Path
from typing import Any

import tomli

from pllm.build.recipe_sections import (
    SECTIONS,
    DeviceSection,
    EngineSection,
    ModelSection,
    QuantizationSection,
    StructuredOutputsSection,
    VerifySection,
    key_of,
)
from pllm.build.toml_text import toml_text
from pllm.runtime.errors import RecipeError
from pllm.runtime.structured_outputs import MAX_GRAMMAR_CHARACTERS

__all__ = ["Recipe"]

_MAX_BYTES = 1 << 20


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """A checked recipe. Every value is of its kind and in its range."""

    name: str
    """The artifact's name: `name` at the top of the file, else the file's own."""
    folder: Path
    """What a relative source is relative to."""
    origin: str
    """What the user would give `pllm build` again: the recipe's path, or the model; never an absolute path."""
    model: ModelSection
    device: DeviceSection = field(default_factory=DeviceSection)
    engine: EngineSection = field(default_factory=EngineSection)
    quantization: QuantizationSection = field(default_factory=QuantizationSection)
    structured_outputs: StructuredOutputsSection = field(default_factory=StructuredOutputsSection)
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
        mistakes += _unknown(table, ["name", *SECTIONS], "")
        sections: dict[str, Any] = {}
        for section, kind in SECTIONS.items():
            values = table.get(section, {})
            if isinstance(values, dict):
                sections[section] = _section(kind, section, values, mistakes)
            else:
                mistakes.append(f"{section} must be a table: write [{section}]")
        if not mistakes:
            written = Path(origin)
            recipe = cls(
                name=given, folder=folder, origin=written.name if written.is_absolute() else origin, **sections
            )
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
        for section in SECTIONS:
            table[section] = {
                item.name: getattr(getattr(self, section), item.name) for item in fields(SECTIONS[section])
            }
        if self.source_directory() is not None and Path(self.model.source).expanduser().is_absolute():
            table["model"]["source"] = Path(self.model.source).name
        for key, names in table["structured_outputs"].items():
            table["structured_outputs"][key] = [_inside(name) for name in names]
        if not self.model.config:
            del table["model"]["config"]
        return toml_text(table)

    @property
    def fingerprint(self) -> str:
        """SHA-256 of :meth:`lock_text` and of the files that it names beside the model's."""
        digest = hashlib.sha256(self.lock_text().encode())
        for _, path in self.structured_outputs.files(self.folder):
            digest.update(hashlib.sha256(path.read_bytes()).digest())
        return digest.hexdigest()

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
        return found + self._unusable_forms()

    def _unusable_forms(self) -> list[str]:
        """What of the named schemas and grammars cannot even be read."""
        found: list[str] = []
        names: dict[str, Path] = {}
        for key, path in self.structured_outputs.files(self.folder):
            other = names.setdefault(path.stem, path)
            if other is not path:
                found.append(f"{key}: {path.name} and {other.name} have the same name")
            if (path.suffix == ".json") != key.endswith("schemas"):
                found.append(f"{key}: {path.name}: schemas are .json files, grammars are not")
            if not _is_name(path.stem):
                found.append(f"{key}: a file's name is letters, digits, '.', '_' and '-', not {path.name!r}")
            try:
                size = path.stat().st_size if path.is_file() else None
            except OSError:
                size = None
            if size is None:
                found.append(f"{key}: there is no file {path}")
            elif size > MAX_GRAMMAR_CHARACTERS:
                found.append(f"{key}: {path.name} has {size} bytes; at most {MAX_GRAMMAR_CHARACTERS} are taken")
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
    homes = {item.name: section for section, kind in SECTIONS.items() for item in fields(kind)}
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


def _inside(name: str) -> str:
    """A file as a lock names it: by no path of this machine."""
    return Path(name).name if Path(name).expanduser().is_absolute() else name


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

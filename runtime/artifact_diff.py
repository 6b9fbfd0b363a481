"""What changed between two artifacts: recipe, graphs, memory, latencies, golden tokens, sizes. Nothing is loaded."""

import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import msgspec

from pllm.runtime.artifact import Artifact
from pllm.runtime.graphs import Graphs
from pllm.runtime.latencies import Latencies

__all__ = ["Change", "Plain", "Section", "diff_artifacts"]

_RECIPE = "recipe.lock.toml"
_SHOWN_TOKENS = 6

Plain = str | int | float | bool | None


@dataclass(frozen=True, slots=True)
class Change:
    """One thing that is not the same; None where a side has no such thing."""

    what: str
    before: Plain
    after: Plain

    @property
    def ratio(self) -> float | None:
        """After over before, where both are numbers and the first is not zero."""
        if isinstance(self.before, (int, float)) and isinstance(self.after, (int, float)) and self.before:
            return self.after / self.before
        return None


@dataclass(frozen=True, slots=True)
class Section:
    """The changes of one part. ``same``: how many things of it are alike. ``note``: why it could not be compared."""

    title: str
    changes: tuple[Change, ...]
    same: int
    note: str = ""

    @classmethod
    def of(cls, title: str, sides: Iterable[Mapping[str, Plain]], note: str = "") -> "Section":
        before, after = sides
        names = list(dict.fromkeys([*before, *after]))
        changes = [
            Change(name, before.get(name), after.get(name)) for name in names if before.get(name) != after.get(name)
        ]
        return cls(title, tuple(changes), len(names) - len(changes), note)


def diff_artifacts(before: Artifact, after: Artifact) -> tuple[Section, ...]:
    """Every part, in order, also those without changes. Raises ArtifactDamagedError for a file that cannot be read."""
    sides = (before, after)
    graphs = [_graphs(side) for side in sides]
    missing = [side.directory.name for side, graph in zip(sides, graphs, strict=True) if graph is None]
    note = f"not recorded in {', '.join(missing)}: built before graphs were" if missing else ""
    recorded = [{} if missing or graph is None else graph for graph in graphs]
    return (
        Section.of("recipe", (_recipe(side) for side in sides)),
        Section.of("provenance and requirements", (_origin(side) for side in sides)),
        Section.of("model", (_fields(side.manifest.model) | _fields(side.manifest.kv, "kv.") for side in sides)),
        Section.of("graph nodes and kernels", recorded, note),
        Section.of("memory ledger, bytes", (_fields(side.manifest.memory) for side in sides)),
        Section.of("engine", (_fields(side.manifest.engine) for side in sides)),
        Section.of("latencies, ms", (_latencies(side) for side in sides), "each as its own build measured it"),
        Section.of("golden tokens", (_golden(side) for side in sides)),
        Section.of("certificate", (_fields(side.manifest.certificate) for side in sides)),
        Section.of("files, bytes", (_sizes(side) for side in sides)),
        Section.of("contents, SHA-256", (_hashes(side) for side in sides)),
    )


def _recipe(side: Artifact) -> dict[str, Plain]:
    if _RECIPE not in side.manifest.files:
        return {}
    return _flat(tomllib.loads(side.path(_RECIPE).read_text(encoding="utf-8")))


def _origin(side: Artifact) -> dict[str, Plain]:
    return _fields(side.manifest.provenance) | _fields(side.manifest.requires, "requires.")


def _graphs(side: Artifact) -> dict[str, Plain] | None:
    graphs = Graphs.of(side)
    if graphs is None:
        return None
    found: dict[str, Plain] = {}
    for name, graph in graphs.programs.items():
        for kind, counts in (("nodes", graph.nodes), ("kernels", graph.kernels)):
            found[f"{name}: {kind} in all"] = sum(counts.values())
            found |= {f"{name}: {kind}, {each}": count for each, count in counts.items()}
    return found


def _latencies(side: Artifact) -> dict[str, Plain]:
    rows = Latencies.read(side.path(side.manifest.latency)).rows
    return {f"{row.num_tokens} tokens, {row.num_seqs} sequences of {row.context}": row.ms for row in rows}


def _golden(side: Artifact) -> dict[str, Plain]:
    """Each answer by its prompt, shown by its first tokens where it is another."""
    document: Any = msgspec.json.decode(side.path(side.manifest.golden).read_bytes())
    found: dict[str, Plain] = {}
    for i, each in enumerate(document["prompts"] if isinstance(document, dict) else ()):
        prompt = each["prompt_token_ids"]
        shown = " ".join(map(str, prompt[:_SHOWN_TOKENS]))
        found[f"prompt {i + 1} ({len(prompt)} tokens: {shown} ...)"] = " ".join(map(str, each["token_ids"]))
    return found


def _sizes(side: Artifact) -> dict[str, Plain]:
    files = {name: entry.size for name, entry in side.manifest.files.items()}
    return {"in all": sum(files.values()), **files}


def _hashes(side: Artifact) -> dict[str, Plain]:
    return {name: entry.sha256[:16] for name, entry in side.manifest.files.items()}


def _fields(struct: msgspec.Struct, prefix: str = "") -> dict[str, Plain]:
    return _flat(msgspec.to_builtins(struct), prefix)


def _flat(table: Mapping[str, Any], prefix: str = "") -> dict[str, Plain]:
    """A document's leaves by their paths; a list is one leaf."""
    found: dict[str, Plain] = {}
    for name, value in table.items():
        if isinstance(value, Mapping):
            found |= _flat(value, f"{prefix}{name}.")
        elif isinstance(value, (list, tuple)):
            found[prefix + name] = ", ".join(map(str, value))
        else:
            found[prefix + name] = value
    return found

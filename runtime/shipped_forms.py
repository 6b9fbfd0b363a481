"""The forms that an artifact brings along: schemas and grammars that its recipe names, by their files' names."""

from collections.abc import Iterable, Mapping
from pathlib import Path

from pllm.runtime.errors import ArtifactDamagedError, RequestError
from pllm.runtime.structured_outputs import StructuredOutputsParams

__all__ = ["FOLDER", "form_of", "shipped_forms"]

FOLDER = "grammars"


def form_of(name: str, text: str) -> StructuredOutputsParams:
    """What a file holds: ``NAME.json`` a JSON schema, any other a grammar. Raises RequestError where that cannot be."""
    return StructuredOutputsParams(json=text) if name.endswith(".json") else StructuredOutputsParams(grammar=text)


def shipped_forms(artifact: Path, files: Iterable[str]) -> Mapping[str, StructuredOutputsParams]:
    """The forms by their names. ``files``: as the manifest lists them, relative to the artifact; their hashes have been
    verified. Raises ArtifactDamagedError."""
    forms = {}
    for file in files:
        path = artifact / file
        try:
            forms[path.stem] = form_of(path.name, path.read_text("utf-8"))
        except (OSError, UnicodeError, RequestError) as error:
            raise ArtifactDamagedError(f"{path} is malformed: {error}; build the artifact again", path) from error
    return forms

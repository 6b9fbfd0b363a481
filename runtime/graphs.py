"""What the programs' graphs are made of: a record that the build leaves for whoever compares two artifacts.

It is a file of its own beside the manifest, and nothing that runs reads it: an artifact from before there was one runs
as any other, and says nothing here.
"""

import msgspec

from pllm.runtime.artifact import Artifact
from pllm.runtime.errors import ArtifactDamagedError

__all__ = ["FUSED", "GRAPHS", "Graphs", "ProgramGraph"]

GRAPHS = "graphs.json"

FUSED = "fused"
"""Among a program's kernels: those that the compiler itself wrote, all together. Their names say how it fused them."""


class ProgramGraph(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One program: how many of each there are."""

    nodes: dict[str, int]
    """Calls in the graph as it was compiled, after all passes, by operator: ``pllm.packed_linear.default``."""
    kernels: dict[str, int]
    """What one run of the program calls, by name, and `FUSED`."""


class Graphs(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """``graphs.json``."""

    programs: dict[str, ProgramGraph]
    """By the manifest's names of the programs."""

    @classmethod
    def of(cls, artifact: Artifact) -> "Graphs | None":
        """None for an artifact without the record. Raises ArtifactDamagedError where it is malformed."""
        if GRAPHS not in artifact.manifest.files:
            return None
        path = artifact.path(GRAPHS)
        try:
            return msgspec.json.decode(path.read_bytes(), type=cls)
        except msgspec.DecodeError as error:
            raise ArtifactDamagedError(f"{path} is malformed: {error}; build the artifact again", path) from error

"""What a side says of itself before anything is measured: ``python -P -m pllm.runtime.gate.facts ARTIFACT``.

Each side's own code reads its own artifact, so that a gate compares artifacts of two formats, and knows when it was
given the same thing twice.
"""

import hashlib
import json
import sys
from collections.abc import Sequence
from pathlib import Path

import msgspec

import pllm
from pllm.runtime.artifact import Artifact
from pllm.runtime.errors import PllmError, UserInputError
from pllm.runtime.gate.quantity import PASS_TOKENS
from pllm.runtime.gate.side import Side
from pllm.runtime.latencies import Latencies, Latency
from pllm.runtime.machine import cpu_count

__all__ = ["Facts", "common_rows", "facts_of", "num_blocks"]

_ROOMS = ("", "build", "runtime", "kernels")
_CODE = (".py", ".cpp", ".h")
_PASS_SEQUENCES = 8  # W2's


class Facts(msgspec.Struct, frozen=True, kw_only=True):
    """Of an artifact and the code that opens it. Fields are added with a default and never renamed."""

    name: str
    recipe: str
    checkpoint_sha256: str
    content_sha256: str
    """Of all files but the latency table: equal where building again changed nothing."""
    code_sha256: str
    """Of pllm's own sources."""
    num_bytes: int
    """Of all files."""
    block_size: int
    max_model_len: int
    rows: tuple[Latency, ...]
    """The certificate's latency table."""
    calibration: float | None = None
    cpu: str = ""
    """Where the table was measured, and the calibration kernel's seconds there."""
    threads: int = 1
    """That the engine has where nobody says otherwise; the table was measured with as many."""

    @classmethod
    def of(cls, artifact: Path) -> "Facts":
        """Read them. Raises ArtifactError and its kinds."""
        opened = Artifact.read(artifact)
        manifest = opened.manifest
        content = hashlib.sha256()
        for name, entry in sorted(manifest.files.items()):
            if name != manifest.latency:
                content.update(f"{entry.sha256}  {name}\n".encode())
        latencies = Latencies.read(opened.path(manifest.latency))
        content.update(str(manifest.engine.tuning).encode())
        return cls(
            name=manifest.name,
            recipe=manifest.provenance.recipe,
            checkpoint_sha256=manifest.provenance.checkpoint_sha256,
            content_sha256=content.hexdigest(),
            code_sha256=_code(),
            num_bytes=sum(entry.size for entry in manifest.files.values()),
            block_size=manifest.kv.block_size,
            max_model_len=manifest.engine.max_model_len,
            rows=latencies.rows,
            calibration=latencies.calibration,
            cpu=latencies.cpu,
            threads=manifest.engine.num_threads(cpu_count()),
        )

    def is_same(self, other: "Facts") -> bool:
        """Whether nothing that could cost more or less differs."""
        return (self.content_sha256, self.code_sha256) == (other.content_sha256, other.code_sha256)


def facts_of(side: Side) -> Facts:
    """What a side's own code says of it. Raises the error that it ended with."""
    return msgspec.json.decode(side.told("pllm.runtime.gate.facts", str(side.artifact)), type=Facts)


def common_rows(base: Facts, new: Facts) -> tuple[Latency, ...]:
    """The steps that both certificates time, with the base's durations.

    Raises UserInputError where the two do not serve the same model: then nothing would be compared.
    """
    if base.checkpoint_sha256 != new.checkpoint_sha256:
        raise UserInputError(f"{base.name} and {new.name} hold different weights: the gate compares one model's builds")
    theirs = {(row.num_seqs, row.num_tokens, row.context) for row in new.rows}
    return tuple(row for row in base.rows if (row.num_seqs, row.num_tokens, row.context) in theirs)


def num_blocks(sides: Sequence[Facts]) -> int:
    """KV blocks that every side is given: enough for one sequence of any length that it takes, and for W2."""
    return max(
        max(-(-side.max_model_len // side.block_size), _PASS_SEQUENCES * -(-PASS_TOKENS // side.block_size))
        for side in sides
    )


def _code() -> str:
    digest = hashlib.sha256()
    root = Path(pllm.__file__).parent
    for room in _ROOMS:
        folder = root / room
        found = folder.glob("*") if not room else folder.resolve().rglob("*")
        for path in sorted(path for path in found if path.suffix in _CODE):
            name = f"{room}/{path.relative_to(folder.resolve() if room else folder).as_posix()}"
            digest.update(f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {name}\n".encode())
    return digest.hexdigest()


def _main(arguments: Sequence[str]) -> int:
    try:
        facts = Facts.of(Path(arguments[0]))
    except PllmError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    print(json.dumps(msgspec.to_builtins(facts)))
    return 0


if __name__ == "__main__":
    sys.exit(_main(sys.argv[1:]))

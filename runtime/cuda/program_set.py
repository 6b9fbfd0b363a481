"""The programs of an artifact for CUDA by what they are for: decoding up to so many rows, or steps of any kind."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Generic, TypeVar

from pllm.runtime.errors import ArtifactDamagedError
from pllm.runtime.manifest import ProgramInfo

__all__ = ["MIXED", "ProgramSet", "decode_name"]

MIXED = "mixed"
"""The program for steps of any kind."""

_DECODE = "decode-"
_T = TypeVar("_T")


def decode_name(max_rows: int) -> str:
    """Of the program that decodes up to so many rows: ``decode-8``."""
    return f"{_DECODE}{max_rows}"


@dataclass(frozen=True, slots=True)
class ProgramSet(Generic[_T]):
    """An artifact's programs, opened or not."""

    decode: Mapping[int, _T]
    """By the most rows that each is for."""
    mixed: _T

    @classmethod
    def of(cls, programs: Mapping[str, tuple[ProgramInfo, _T]]) -> "ProgramSet[_T]":
        """By their names. Raises ArtifactDamagedError where one is missing."""
        decode = {
            info.dims["sequences"].max: each for name, (info, each) in programs.items() if name.startswith(_DECODE)
        }
        if not decode or MIXED not in programs:
            raise ArtifactDamagedError(f"of its programs ({', '.join(programs)}) one that decodes or {MIXED!r} lacks")
        return cls(dict(sorted(decode.items())), programs[MIXED][1])

    def for_rows(self, rows: int) -> _T:
        """The program that decodes so many rows: the one for the fewest that holds them. Raises ValueError."""
        for most, program in self.decode.items():
            if rows <= most:
                return program
        raise ValueError(f"{rows} rows are more than any program decodes, {max(self.decode)}")

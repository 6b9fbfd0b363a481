"""The base's double: the same program once more, on files of its own.

Processes that map one file share its pages, so what one of them has read lies in the processor's cache for the other.
With one file for base and double, a copy of it as the new side seemed 1% slower. Files far larger than any cache are
read from memory by everybody, and are not copied.
"""

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from pllm.runtime.gate.side import Side

__all__ = ["double_of"]

_LARGE = 1 << 29


@contextmanager
def double_of(side: Side, num_bytes: int) -> Iterator[Side]:
    """For an artifact of ``num_bytes``; the copy is removed at the end."""
    if num_bytes > _LARGE:
        yield side
        return
    with tempfile.TemporaryDirectory(prefix="pllm-gate-") as folder:
        copy = Path(folder) / "double"
        shutil.copytree(side.artifact, copy)
        yield replace(side, artifact=copy)

"""A checkpoint as CTranslate2 reads it, by its own converter.

python -m peers.ctranslate2_checkpoint CHECKPOINT TARGET f32|int8
"""

import sys
from pathlib import Path

from ctranslate2.converters import TransformersConverter

_NAMES = {"f32": "float32", "int8": "int8"}
"""As CTranslate2 calls them."""


def write(checkpoint: Path, target: Path, weights: str) -> None:
    """Write ``target``, all of it or nothing."""
    partial = target.with_name(target.name + ".partial")
    TransformersConverter(str(checkpoint), low_cpu_mem_usage=True).convert(
        str(partial), quantization=_NAMES[weights], force=True
    )
    partial.replace(target)


if __name__ == "__main__":
    write(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3])

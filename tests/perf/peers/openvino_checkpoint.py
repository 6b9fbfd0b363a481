"""A checkpoint as OpenVINO GenAI reads it: optimum-intel's export as its command line makes it.

python -m peers.openvino_checkpoint CHECKPOINT TARGET f16|int8|int4
"""

import subprocess
import sys
from pathlib import Path

_NAMES = {"f16": "fp16", "int8": "int8", "int4": "int4"}
"""As optimum-cli calls them."""


def write(checkpoint: Path, target: Path, weights: str) -> None:
    """Write ``target``, all of it or nothing."""
    partial = target.with_name(target.name + ".partial")
    command = Path(sys.executable).parent / "optimum-cli"
    words = ["export", "openvino", "-m", str(checkpoint), "--task", "text-generation-with-past"]
    subprocess.run([command, *words, "--weight-format", _NAMES[weights], partial], check=True)
    partial.replace(target)


if __name__ == "__main__":
    write(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3])

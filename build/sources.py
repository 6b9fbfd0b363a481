"""The builder's own sources: a change in them makes artifacts stale.

The build and the kernels make the artifact, and so does as much of the runtime as they import: the profile runs its
model runner, the golden tokens are its scheduler's and sampler's, the manifest is its. What only serves (the server,
the library, the commands) decides nothing in an artifact, and may change without one being built again.
"""

import hashlib
import re
from collections.abc import Iterator
from pathlib import Path

__all__ = ["builder_fingerprint", "builder_sources"]

_ROOT = Path(__file__).parent.parent
_IMPORT = re.compile(r"^[ \t]*(?:from (pllm[\w.]*) import (?:\(([^)]*)\)|([^#\n]+))|import (pllm[\w.]+))", re.MULTILINE)


def builder_fingerprint() -> str:
    """SHA-256 over the names and contents of :func:`builder_sources`."""
    digest = hashlib.sha256()
    for path in builder_sources():
        content = hashlib.sha256(path.read_bytes()).hexdigest()
        digest.update(f"{content}  {path.relative_to(_ROOT).as_posix()}\n".encode())
    return digest.hexdigest()


def builder_sources() -> list[Path]:
    """All files of ``build`` and ``kernels``, and the modules of the runtime that they or those import."""
    found = {
        path
        for folder in ("build", "kernels")
        for path in (_ROOT / folder).rglob("*")
        if path.suffix in (".py", ".cpp", ".h")
    }
    unread = [path for path in found if path.suffix == ".py"]
    while unread:
        imported = set(_imported(unread.pop())) - found
        found |= imported
        unread += imported
    return sorted(found)


def _imported(path: Path) -> Iterator[Path]:
    """The modules of this distribution that a module imports, inside its functions too.

    By its lines: Python 3.11's own parser fails now and then where two threads build at once.
    """
    for statement in _IMPORT.finditer(path.read_text(encoding="utf-8")):
        module, several, one, plain = statement.groups(default="")
        names = [f"{module}.{name}" for name in re.findall(r"\w+", several or one)]
        for name in (module or plain, *names):
            place = _ROOT.joinpath(*name.split(".")[1:])
            yield from (each for each in (place.with_suffix(".py"), place / "__init__.py") if each.is_file())

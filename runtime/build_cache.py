"""Artifacts that ``LLM(model=...)`` built for itself, in the user's cache, by what they were built from."""

import fcntl
import hashlib
import json
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import pllm
from pllm.runtime.errors import BuildError, UserInputError
from pllm.runtime.machine import Machine
from pllm.runtime.user_cache import user_cache

__all__ = ["BuildCache", "CachedArtifact"]

_OF_A_CHECKPOINT = frozenset({".jinja", ".json", ".safetensors"})  # what else lies beside them no build reads
_CLEANING_UP = 10.0  # seconds that an interrupted build may take to remove what it began


@dataclass(frozen=True, slots=True)
class CachedArtifact:
    """One built artifact. ``size``: bytes of all its files; ``overrides``: what was said beside the source."""

    path: Path
    source: str
    overrides: tuple[str, ...]
    built: datetime
    size: int


class BuildCache:
    """The folder ``artifacts/`` of the user's cache: NAME-KEY/ for each artifact, and NAME-KEY.json that says what it
    is.

    The key is a hash of everything that decides the build: the recipe's text, the checkpoint's files (by size and
    time), the overrides, and the versions of pllm and torch. Two processes that want the same artifact build it once.
    """

    def __init__(self, root: Path | None = None) -> None:
        self._root = user_cache() / "artifacts" if root is None else root

    def obtain(self, source: str, overrides: Sequence[str] = ()) -> Path:
        """The artifact of a recipe, checkpoint directory or Hub id, built by a process of its own if it is not there.

        The build's progress goes to standard error. Raises UserInputError or BuildError when it fails; what it said
        stands above.
        """
        target = self._path(source, overrides)
        with self._locked(target):
            if not (target / "manifest.json").is_file():
                self._build(source, overrides, target)
        return target

    def entries(self) -> list[CachedArtifact]:
        """All artifacts in the cache, the oldest first."""
        found = []
        for note in self._root.glob("*.json"):
            artifact = note.with_suffix("")
            if (artifact / "manifest.json").is_file():
                about = json.loads(note.read_bytes())
                size = sum(file.stat().st_size for file in artifact.rglob("*") if file.is_file())
                built = datetime.fromtimestamp((artifact / "manifest.json").stat().st_mtime)
                found.append(CachedArtifact(artifact, about["source"], tuple(about["overrides"]), built, size))
        return sorted(found, key=lambda entry: entry.built)

    def clean(self) -> int:
        """Remove everything, what a killed build may have left too; the bytes that this frees."""
        freed = sum(file.stat().st_size for file in self._root.rglob("*") if file.is_file())
        shutil.rmtree(self._root, ignore_errors=True)
        return freed

    def _path(self, source: str, overrides: Sequence[str]) -> Path:
        machine = Machine.this()
        key = hashlib.sha256()
        decided = [source, *overrides, pllm.__version__, machine.torch, machine.architecture, *_contents(source)]
        for part in decided:
            key.update(f"{len(part)}:{part}".encode())
        name = Path(source).stem if source.endswith(".toml") else Path(source).name
        return self._root / f"{name.lower()}-{key.hexdigest()[:16]}"

    def _build(self, source: str, overrides: Sequence[str], target: Path) -> None:
        # -P: the current folder may hold a build/ or kernels/ of its own, which must not stand for somebody's package.
        command = [sys.executable, "-P", "-m", "pllm", "build", source, "--output", str(target)]
        for override in overrides:
            command += ["--set", override]
        code = run_build(command)
        if code:
            kind = UserInputError if code == UserInputError.exit_code else BuildError
            raise kind(f"{source} could not be built (exit code {code}); the cause stands above.")
        note = {"source": source, "overrides": list(overrides)}
        target.with_name(target.name + ".json").write_text(json.dumps(note), encoding="utf-8")

    @contextmanager
    def _locked(self, target: Path) -> Iterator[None]:
        self._root.mkdir(parents=True, exist_ok=True)
        with target.with_name(target.name + ".lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)  # released when the file is closed, or its process killed
            yield


def run_build(command: list[str]) -> int:
    """The exit code of a build, which ends with this process's part in it: it cleans up after itself when told to."""
    with subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=2) as build:
        try:
            return build.wait()
        except KeyboardInterrupt:
            # A terminal's Ctrl-C has reached the build too, and a second signal would disturb its cleaning up.
            with suppress(subprocess.TimeoutExpired):
                build.wait(_CLEANING_UP)
            raise
        finally:
            if build.poll() is None:
                build.terminate()
                build.wait()


def _contents(source: str) -> list[str]:
    """What of the source's files decides the build; nothing for a Hub id, which its revision pins."""
    path = Path(source)
    if path.is_dir():
        files = sorted(file for file in path.iterdir() if file.suffix in _OF_A_CHECKPOINT and file.is_file())
        return [f"{file.name} {file.stat().st_size} {file.stat().st_mtime_ns}" for file in files]
    if not path.is_file():
        return []
    text = path.read_bytes()
    return [hashlib.sha256(text).hexdigest(), *_contents(str(_checkpoint_of(text, path.parent)))]


def _checkpoint_of(recipe: bytes, folder: Path) -> Path:
    """Where a recipe's checkpoint would be if it is a directory. What is wrong with the recipe is the build's to
    say."""
    try:
        model: Any = tomllib.loads(recipe.decode()).get("model")
    except ValueError:
        return folder / "model.source"
    source = model.get("source") if isinstance(model, dict) else None
    found = folder / Path(str(source)).expanduser()
    return found if found.is_dir() else folder / "model.source"

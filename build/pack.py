"""Packing: an artifact appears whole under its name, or not at all.

    artifacts/
        NAME/                  the artifact: only ever the target of a rename
        .NAME.partial-PID/     being built; its files are synced, hashed, and the manifest and its seal are written last
        .NAME.lock             held (flock) by the one build of NAME that runs; the kernel drops it when a build dies

Whoever holds the lock knows that every other ``.NAME.partial-*`` is of a dead build, and removes it.
"""

import errno
import fcntl
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec

from pllm.runtime.artifact import MANIFEST, SEAL, seal_text
from pllm.runtime.errors import BuildError
from pllm.runtime.file_hash import hash_files
from pllm.runtime.machine import cpu_count
from pllm.runtime.manifest import FileEntry, Manifest, WeightsInfo
from pllm.runtime.safetensors_file import TensorSpec, write_safetensors

__all__ = ["SHARD_BYTES", "Staging", "build_lock", "stage"]

SHARD_BYTES = 256 << 20
"""A weight file is closed when it has grown to this. Files are what the runtime hashes in parallel."""

_CANNOT_WRITE = {
    errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOTDIR, errno.EISDIR, errno.EEXIST,
    errno.ENAMETOOLONG, errno.EIO, errno.EFBIG,
}  # fmt: skip


class Staging:
    """The folder that an artifact is gathered in."""

    def __init__(self, target: Path, directory: Path) -> None:
        self.target = target
        self.directory = directory

    @property
    def scratch(self) -> Path:
        """A folder for intermediate files. It is not part of the artifact."""
        folder = self.directory / ".scratch"
        folder.mkdir(exist_ok=True)
        return folder

    def path(self, name: str) -> Path:
        """Where to write the file ``name`` of the artifact (``programs/main/model.so``); its folders are made."""
        path = self.directory / name
        path.parent.mkdir(parents=True, exist_ok=True)
        return path

    def write_weights(
        self, specs: Sequence[TensorSpec], fetch: Callable[[str], Any], shard_bytes: int = SHARD_BYTES
    ) -> WeightsInfo:
        """Write tensors into ``weights/*.safetensors``, in the given order, which is the order they are loaded in.

        ``fetch(name)`` gives one tensor's bytes at a time, as :func:`write_safetensors` asks for them.
        """
        shards: list[list[TensorSpec]] = [[]]
        size = 0
        for spec in specs:
            if shards[-1] and size + spec.nbytes > shard_bytes:
                shards.append([])
                size = 0
            shards[-1].append(spec)
            size += spec.nbytes
        names = [f"weights/{number:05d}.safetensors" for number in range(1, len(shards) + 1)]
        for name, shard in zip(names, shards, strict=True):
            write_safetensors(self.path(name), shard, fetch)
        return WeightsInfo(files=tuple(names), num_tensors=len(specs), num_bytes=sum(spec.nbytes for spec in specs))

    def seal(self, describe: Callable[[dict[str, FileEntry]], Manifest]) -> Manifest:
        """Finish: sync and hash every file, write the manifest that ``describe`` makes of the list of files, and move
        the folder to its name; an artifact that was there before is replaced. Returns the manifest."""
        shutil.rmtree(self.directory / ".scratch", ignore_errors=True)
        paths = sorted(path for path in self.directory.rglob("*") if not path.is_dir())
        names = [path.relative_to(self.directory).as_posix() for path in paths]
        for path in paths:
            _sync(path)
        hashes = hash_files(self.directory, names, threads=cpu_count(), remember=False)
        files = {
            name: FileEntry(size=path.stat().st_size, sha256=hashes[name])
            for name, path in zip(names, paths, strict=True)
        }
        manifest = describe(files)
        document = msgspec.json.format(msgspec.json.encode(manifest), indent=1) + b"\n"
        # What cannot be read back would be found by the first user: better by this build.
        assert msgspec.json.decode(document, type=Manifest) == manifest
        for name, content in ((SEAL, seal_text(document)), (MANIFEST, document)):
            self.path(name).write_bytes(content)
            _sync(self.directory / name)
        for folder in [*(path for path in self.directory.rglob("*") if path.is_dir()), self.directory]:
            _sync(folder)
        self._publish()
        return manifest

    def _publish(self) -> None:
        former = self.directory.with_name(f"{self.directory.name}.former")
        if self.target.exists():
            self.target.rename(former)
        self.directory.rename(self.target)
        _sync(self.target.parent)
        shutil.rmtree(former, ignore_errors=True)


@contextmanager
def build_lock(target: Path, on_wait: Callable[[], None]) -> Iterator[None]:
    """Be the only build of ``target`` while the block runs; ``on_wait`` is called first where another one must end.
    What dead builds have left is removed.

    Raises BuildError where the folder around ``target`` cannot be written.
    """
    with _explained(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        lock = (target.parent / f".{target.name}.lock").open("a")
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            on_wait()
            fcntl.flock(lock, fcntl.LOCK_EX)
        with _explained(target):
            for dead in [path for path in target.parent.iterdir() if path.name.startswith(_partial(target))]:
                shutil.rmtree(dead, ignore_errors=True)
        yield


@contextmanager
def stage(target: Path) -> Iterator[Staging]:
    """A staging folder beside ``target``, removed again unless it was sealed. Call with the :func:`build_lock` held.

    Raises BuildError, with the cause in a line, for a disk that is full or may not be written.
    """
    with _explained(target):
        if target.exists() and not (target / MANIFEST).is_file() and (not target.is_dir() or any(target.iterdir())):
            raise BuildError(f"{target} exists and is no artifact: remove it, or give another --output")
        directory = target.parent / f"{_partial(target)}{os.getpid()}"
        try:
            directory.mkdir()
            yield Staging(target, directory)
        finally:
            shutil.rmtree(directory, ignore_errors=True)


def _partial(target: Path) -> str:
    """How the folders begin that artifacts of this name are gathered in."""
    return f".{target.name}.partial-"


@contextmanager
def _explained(target: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno not in _CANNOT_WRITE:
            raise
        where = f" ({error.filename})" if error.filename else ""
        raise BuildError(f"{target} cannot be written: {error.strerror}{where}") from error


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)

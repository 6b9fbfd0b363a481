"""The artifact: a folder that ``pllm build`` made, opened so that nothing damaged or foreign is ever loaded.

An artifact holds native code: opening one is running it. So before anything is loaded,

1. ``manifest.json`` must match its seal (``manifest.sha256``), have a format we read, and be well-formed;
2. every file it lists must be there, a plain file, not a link, of the size it says; the folders that code is loaded
   from hold nothing else;
3. it must fit this machine (torch, instruction set, C library, device): :func:`pllm.runtime.manifest.mismatch`;
4. every file but the weights is hashed, always: a few megabytes.

The weights are gigabytes, at some 1.8 GB/s a core. They are only data, so they are hashed in the background, on all
cores, while libraries load and programs open; :meth:`Artifact.wait_verified` is passed before anything is served. What
was hashed once is remembered for as long as the file's stamp shows that nobody wrote to it
(:mod:`pllm.runtime.file_hash` says what that proves and what it does not); ``verify="full"`` hashes everything anew.
"""

import hashlib
import os
import stat
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import msgspec

from pllm.runtime.errors import ArtifactDamagedError, ArtifactError, ArtifactMismatchError
from pllm.runtime.file_hash import hash_file, hash_files
from pllm.runtime.machine import Machine, cpu_count
from pllm.runtime.manifest import FORMAT_VERSION, Manifest, mismatch
from pllm.runtime.safetensors_file import TENSOR_ALIGNMENT, SafetensorsError, SafetensorsFile

__all__ = ["MANIFEST", "SEAL", "Artifact", "Manifest", "MappedWeights", "Verify", "Weight", "seal_text"]

MANIFEST = "manifest.json"
SEAL = "manifest.sha256"

Verify = Literal["remembered", "full"]
"""Whether hashes of weight files may be remembered from an earlier start, or are computed anew."""

_MAX_MANIFEST_BYTES = 64 << 20


@dataclass(frozen=True, slots=True)
class Weight:
    """A mapped tensor: ``nbytes`` bytes at ``address``, row-major, aligned to 64 bytes, read-only."""

    name: str
    dtype: str
    """By the names of safetensors: ``F32``, ``BF16``, ``I8``."""
    shape: tuple[int, ...]
    address: int
    nbytes: int


class MappedWeights:
    """All weights of an artifact, mapped and not copied. Addresses are valid until :meth:`close`."""

    def __init__(self, files: list[SafetensorsFile]) -> None:
        self._files = files
        tensors: dict[str, Weight] = {}
        for file in files:
            base = file.address
            for entry in file.tensors.values():
                if entry.name in tensors:
                    raise ArtifactDamagedError(f"{file.path}: {entry.name} is in another file too", file.path)
                if entry.offset % TENSOR_ALIGNMENT:
                    raise ArtifactDamagedError(f"{file.path}: {entry.name} is not aligned", file.path)
                tensors[entry.name] = Weight(entry.name, entry.dtype, entry.shape, base + entry.offset, entry.nbytes)
        self.tensors: Mapping[str, Weight] = tensors
        """The weights by name, in load order."""

    def close(self) -> None:
        for file in self._files:
            file.close()


class Artifact:
    """An artifact's folder and its manifest."""

    def __init__(self, directory: Path, manifest: Manifest) -> None:
        self.directory = directory
        self.manifest = manifest
        self._hashing: threading.Thread | None = None
        self._failure: BaseException | None = None

    @classmethod
    def read(cls, directory: Path | str) -> "Artifact":
        """Read and check the manifest, and that its files are there in their sizes; hash and load nothing.

        Raises ArtifactError where there is no artifact, ArtifactMismatchError for another format, and
        ArtifactDamagedError, naming the file, otherwise.
        """
        directory = Path(directory)
        artifact = cls(directory, _read_manifest(directory))
        artifact._check_files()
        return artifact

    @classmethod
    def open(
        cls, directory: Path | str, *, verify: Verify = "remembered", machine: Machine | None = None
    ) -> "Artifact":
        """Read an artifact that is about to be run: :meth:`read`, then the machine, then the hashes (see the module).

        The weights' hashes are still being computed when this returns: call :meth:`wait_verified` before serving.
        Raises ArtifactError, ArtifactMismatchError and ArtifactDamagedError.
        """
        artifact = cls.read(directory)
        reason = mismatch(artifact.manifest, machine or Machine.this(artifact.manifest.requires.device))
        if reason is not None:
            raise ArtifactMismatchError(f"{artifact.directory} cannot run here: {reason}")
        weights = set(artifact.manifest.weights.files)
        for name in artifact.manifest.files:
            if name not in weights:
                artifact._compare(name, artifact._hash(name))
        artifact._hashing = threading.Thread(
            target=artifact._verify_weights, args=(verify,), name="pllm-verify", daemon=True
        )
        artifact._hashing.start()
        return artifact

    def wait_verified(self) -> None:
        """Return when all weights have proved to be what the manifest says. Raises ArtifactDamagedError."""
        if self._hashing is None:
            raise RuntimeError("an artifact that was only read is not verified: use Artifact.open")
        self._hashing.join()
        if self._failure is not None:
            raise self._failure

    def path(self, name: str) -> Path:
        """Where a file of the manifest lies. Raises KeyError for one that it does not list."""
        if name not in self.manifest.files:
            raise KeyError(name)
        return self.directory / name

    @property
    def tokenizer_directory(self) -> Path:
        return self.path(self.manifest.tokenizer[0]).parent

    def map_weights(self, *, populate: bool = False) -> MappedWeights:
        """Map the weight files; with ``populate`` their pages are set up at once. Raises ArtifactDamagedError."""
        files: list[SafetensorsFile] = []
        for name in self.manifest.weights.files:
            try:
                files.append(SafetensorsFile(self.path(name), populate=populate))
            except SafetensorsError as error:
                raise ArtifactDamagedError(str(error), self.path(name)) from None
            except OSError as error:
                raise _unreadable(self.path(name), error) from None
        mapped = MappedWeights(files)
        total = sum(weight.nbytes for weight in mapped.tensors.values())
        declared = self.manifest.weights
        if (len(mapped.tensors), total) != (declared.num_tensors, declared.num_bytes):
            raise ArtifactDamagedError(
                f"{self.directory / MANIFEST}: it counts {declared.num_tensors} weights of {declared.num_bytes} bytes, "
                f"and the files hold {len(mapped.tensors)} of {total}",
                self.directory / MANIFEST,
            )
        return mapped

    def _check_files(self) -> None:
        code = {Path(name).parent for name in self.manifest.operators}
        code |= {Path(program.file).parent for program in self.manifest.programs}
        for folder in sorted(code):
            self._refuse_strangers(folder)
        for name, entry in self.manifest.files.items():
            path = self.directory / name
            try:
                for parent in list(Path(name).parents)[:-1]:
                    if (self.directory / parent).is_symlink():
                        raise ArtifactDamagedError(f"{self.directory / parent} is a link: artifacts hold none", path)
                found = path.lstat()
            except OSError as error:
                reason = "is missing" if isinstance(error, FileNotFoundError) else f"cannot be read: {error.strerror}"
                raise ArtifactDamagedError(f"{path} {reason}; {self._again}", path) from None
            if not stat.S_ISREG(found.st_mode):
                raise ArtifactDamagedError(
                    f"{path} is a link or no plain file: artifacts hold none; {self._again}", path
                )
            if found.st_size != entry.size:
                raise ArtifactDamagedError(
                    f"{path} has {found.st_size} bytes instead of {entry.size}; {self._again}", path
                )

    def _refuse_strangers(self, folder: Path) -> None:
        """A library may load its neighbours, so the folders of code hold what the manifest lists and nothing else.
        Strangers elsewhere are never opened, and are left alone."""
        for root, _, files in os.walk(self.directory / folder):
            for file in files:
                name = (Path(root) / file).relative_to(self.directory).as_posix()
                if name not in self.manifest.files and name not in (MANIFEST, SEAL):
                    path = self.directory / name
                    raise ArtifactDamagedError(f"{path} is not in the manifest: remove it", path)

    def _verify_weights(self, verify: Verify) -> None:
        try:
            names = self.manifest.weights.files
            hashes = hash_files(self.directory, names, threads=cpu_count(), remember=verify == "remembered")
            for name, sha256 in hashes.items():
                self._compare(name, sha256)
        except OSError as error:
            self._failure = _unreadable(Path(error.filename or self.directory), error)
        except BaseException as error:  # handed to the thread that waits
            self._failure = error

    def _hash(self, name: str) -> str:
        path = self.directory / name
        try:
            return hash_file(path)
        except OSError as error:
            raise _unreadable(path, error) from None

    def _compare(self, name: str, sha256: str) -> None:
        if sha256 != self.manifest.files[name].sha256:
            path = self.directory / name
            raise ArtifactDamagedError(f"{path} is damaged: its SHA-256 is not the manifest's; {self._again}", path)

    @property
    def _again(self) -> str:
        return f"build it again: pllm build {self.manifest.provenance.recipe} --force"


def seal_text(manifest: bytes) -> bytes:
    """What ``manifest.sha256`` holds, in the form that ``sha256sum --check`` reads."""
    return f"{hashlib.sha256(manifest).hexdigest()}  {MANIFEST}\n".encode()


class _Version(msgspec.Struct):
    format_version: int


def _read_manifest(directory: Path) -> Manifest:
    path = directory / MANIFEST
    if not path.is_file():
        if directory.is_file():
            raise ArtifactError(f"{directory} is no artifact: it is a file, and pllm build makes a folder")
        what = "has no manifest.json" if directory.is_dir() else "does not exist"
        raise ArtifactError(
            f"{directory} is no artifact: it {what}; make one with: pllm build RECIPE --output {directory}"
        )
    document, seal = _bounded(path), _bounded(directory / SEAL)
    if seal != seal_text(document):
        raise ArtifactDamagedError(f"{path} is damaged: it does not match {SEAL}; build the artifact again", path)
    try:
        version = msgspec.json.decode(document, type=_Version).format_version
        if version != FORMAT_VERSION:
            raise ArtifactMismatchError(
                f"{directory} has the artifact format {version}, and this pllm reads {FORMAT_VERSION}: build it again "
                f"with this pllm (pllm build RECIPE), or install the pllm that made it"
            )
        return msgspec.json.decode(document, type=Manifest)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ArtifactDamagedError(f"{path} is malformed: {error}", path) from None


def _unreadable(path: Path, error: OSError) -> ArtifactDamagedError:
    return ArtifactDamagedError(f"{path} cannot be read: {error.strerror}", path)


def _bounded(path: Path) -> bytes:
    try:
        if path.is_symlink() or not path.is_file():
            raise ArtifactDamagedError(f"{path} is missing or no plain file; build the artifact again", path)
        with path.open("rb") as file:
            content = file.read(_MAX_MANIFEST_BYTES + 1)
    except OSError as error:
        raise _unreadable(path, error) from None
    if len(content) > _MAX_MANIFEST_BYTES:
        raise ArtifactDamagedError(f"{path} has more than {_MAX_MANIFEST_BYTES} bytes", path)
    return content

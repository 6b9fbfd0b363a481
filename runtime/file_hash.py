"""SHA-256 of files: several at once, and remembered for as long as a file provably stayed as it was.

Hashing runs at some 1.8 GB/s a core (SHA-NI) and releases the interpreter's lock, so a thread a core does.

What is remembered is a *stamp*: device, inode, size, modification and change time, beside the hash, in the user's own
cache. A later call takes the hash from the stamp only when all five are the same. Every write to a file moves its
change time, which no program can set back; what a stamp cannot see is a medium that rots under an untouched file (or
an administrator who writes past the file system), so callers that must know hash anew: ``remember=False``.
A file changed within the last seconds gets no stamp, since a write in the same tick of the clock could not be told.
"""

import contextlib
import hashlib
import os
import threading
import time
from collections.abc import Sequence
from pathlib import Path

import msgspec

from pllm.runtime.user_cache import user_cache

__all__ = ["hash_file", "hash_files"]

_READ_BYTES = 1 << 20
_SETTLED_NS = 3_000_000_000
"""File systems stamp times in ticks of up to two seconds: younger files are not remembered."""


class _Stamp(msgspec.Struct, frozen=True, forbid_unknown_fields=True, array_like=True):
    device: int
    inode: int
    size: int
    mtime_ns: int
    ctime_ns: int
    sha256: str

    @classmethod
    def of(cls, stat: os.stat_result, sha256: str) -> "_Stamp":
        return cls(stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, sha256)


_STAMPS: msgspec.json.Decoder[dict[str, _Stamp]] = msgspec.json.Decoder(dict[str, _Stamp])


def hash_file(path: Path) -> str:
    """The file's SHA-256 in hexadecimal. Reads a piece at a time: a file cut short meanwhile raises no signal."""
    digest = hashlib.sha256()
    buffer = bytearray(_READ_BYTES)
    view = memoryview(buffer)
    with path.open("rb", buffering=0) as file:
        while count := file.readinto(buffer):
            digest.update(view[:count])
    return digest.hexdigest()


def hash_files(root: Path, names: Sequence[str], *, threads: int, remember: bool = True) -> dict[str, str]:
    """The SHA-256 of each of the named files under ``root``, by name, hashing at most ``threads`` at once.

    With ``remember``, a file whose stamp is unchanged is not read (see the module), and what had to be read is
    remembered. Raises OSError for a file that cannot be read.
    """
    memory = _memory_of(root) if remember else None
    known = _recall(memory) if memory else {}
    hashes: dict[str, str] = {}
    pending: list[tuple[int, str]] = []
    for name in names:
        stamp, stat = known.get(name), (root / name).stat()
        if stamp is not None and stamp == _Stamp.of(stat, stamp.sha256):
            hashes[name] = stamp.sha256
        else:
            pending.append((stat.st_size, name))
    if pending:
        fresh = _hash_all(root, pending, threads)
        hashes |= {name: stamp.sha256 for name, (stamp, _) in fresh.items()}
        if memory:
            _store(memory, known | {name: stamp for name, (stamp, settled) in fresh.items() if settled})
    return {name: hashes[name] for name in names}


def _hash_all(root: Path, pending: list[tuple[int, str]], threads: int) -> dict[str, tuple[_Stamp, bool]]:
    """Hash the files, the largest first, so that the threads end together; with each, whether it may be remembered."""
    queue = [name for _, name in sorted(pending)]
    results: dict[str, tuple[_Stamp, bool]] = {}
    errors: list[OSError] = []

    def work() -> None:
        while not errors:
            try:
                name = queue.pop()
            except IndexError:
                return
            try:
                before, began = (root / name).stat(), time.time_ns()
                sha256 = hash_file(root / name)
                stamp = _Stamp.of((root / name).stat(), sha256)
                quiet = stamp == _Stamp.of(before, sha256) and began - before.st_ctime_ns > _SETTLED_NS
                results[name] = (stamp, quiet)
            except OSError as error:
                errors.append(error)

    helpers = [threading.Thread(target=work, daemon=True) for _ in range(min(threads, len(queue)) - 1)]
    for helper in helpers:
        helper.start()
    work()
    for helper in helpers:
        helper.join()
    if errors:
        raise errors[0]
    return results


def _memory_of(root: Path) -> Path:
    return user_cache() / "hashes" / f"{hashlib.sha256(os.fsencode(root.resolve())).hexdigest()[:32]}.json"


def _recall(memory: Path) -> dict[str, _Stamp]:
    """What is remembered; nothing where the memory is absent, unreadable, malformed or another user's."""
    try:
        with memory.open("rb") as file:
            if os.fstat(file.fileno()).st_uid != os.getuid():
                return {}
            return _STAMPS.decode(file.read(16 << 20))
    except (OSError, msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return {}


def _store(memory: Path, stamps: dict[str, _Stamp]) -> None:
    """Remember; a home that cannot be written only means hashing again."""
    with contextlib.suppress(OSError):
        memory.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        partial = memory.with_suffix(f".{os.getpid()}.{threading.get_ident()}")
        try:
            partial.write_bytes(msgspec.json.encode(stamps))
            partial.replace(memory)
        except OSError:
            partial.unlink(missing_ok=True)

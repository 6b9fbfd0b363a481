"""Hashes of files, and what of them may be remembered."""

import hashlib
import os
from pathlib import Path

import pytest

from pllm.runtime import file_hash
from pllm.runtime.file_hash import hash_file, hash_files


@pytest.fixture
def read_names(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the files that were really read."""
    names: list[str] = []

    def counting(path: Path) -> str:
        names.append(path.name)
        return hash_file(path)

    monkeypatch.setattr(file_hash, "hash_file", counting)
    return names


def remember_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(file_hash, "_SETTLED_NS", -(10**18))


def some_files(root: Path) -> list[str]:
    for number in range(5):
        (root / f"f{number}").write_bytes(bytes([number]) * (number << 20))
    return [f"f{number}" for number in range(5)]


def test_hashes_are_sha256_whatever_the_number_of_threads(tmp_path: Path) -> None:
    names = some_files(tmp_path)
    expected = {name: hashlib.sha256((tmp_path / name).read_bytes()).hexdigest() for name in names}
    for threads in (1, 2, 9):
        assert hash_files(tmp_path, names, threads=threads, remember=False) == expected


def test_an_untouched_file_is_read_once(tmp_path: Path, read_names: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    remember_at_once(monkeypatch)
    names = some_files(tmp_path)
    first = hash_files(tmp_path, names, threads=2)
    assert sorted(read_names) == names
    read_names.clear()
    assert hash_files(tmp_path, names, threads=2) == first
    assert read_names == []
    assert hash_files(tmp_path, names, threads=2, remember=False) == first
    assert sorted(read_names) == names


def test_a_young_file_is_not_remembered(tmp_path: Path, read_names: list[str]) -> None:
    names = some_files(tmp_path)
    for _ in range(2):
        hash_files(tmp_path, names, threads=1)
    assert len(read_names) == 2 * len(names)


def test_a_touched_file_is_read_again(tmp_path: Path, read_names: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    remember_at_once(monkeypatch)
    names = some_files(tmp_path)
    before = hash_files(tmp_path, names, threads=1)
    stat = (tmp_path / "f2").stat()
    (tmp_path / "f2").write_bytes(b"\x07" * stat.st_size)
    os.utime(tmp_path / "f2", ns=(stat.st_atime_ns, stat.st_mtime_ns))
    read_names.clear()
    after = hash_files(tmp_path, names, threads=1)
    assert read_names == ["f2"]
    assert {name for name in names if before[name] != after[name]} == {"f2"}


@pytest.mark.parametrize("junk", [b"", b"{", b"[1]", b'{"f1": [1]}', b"\xff", b"[" * 100_000])
def test_a_malformed_memory_is_no_memory(
    tmp_path: Path, own_cache: Path, junk: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    remember_at_once(monkeypatch)
    names = some_files(tmp_path)
    first = hash_files(tmp_path, names, threads=1)
    (memory,) = (own_cache / "hashes").iterdir()
    memory.write_bytes(junk)
    assert hash_files(tmp_path, names, threads=1) == first


def test_a_missing_file_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        hash_files(tmp_path, ["nothing"], threads=2)

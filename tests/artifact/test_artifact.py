"""Opening: whole artifacts open, and everything else is refused by name before anything is loaded."""

import ctypes
import errno
import hashlib
import json
import os
import re
import resource
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pllm.kernels.cpu.abi import ABI_VERSION
from pllm.runtime.artifact import MANIFEST, SEAL, Artifact
from pllm.runtime.errors import ArtifactDamagedError, ArtifactError, ArtifactMismatchError
from pllm.runtime.machine import Machine
from pllm.runtime.manifest import FORMAT_VERSION

from .sealed import WEIGHTS, make_artifact, rewrite, write_document

REUSED_FIXTURE = settings(
    max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)


def opened(path: Path, **options: Any) -> Artifact:
    artifact = Artifact.open(path, **options)
    artifact.wait_verified()
    return artifact


def test_a_whole_artifact_opens_and_its_weights_are_mapped_where_they_lie(artifact_path: Path) -> None:
    artifact = opened(artifact_path)
    weights = artifact.map_weights()
    assert list(weights.tensors) == list(WEIGHTS)
    for name, expected in WEIGHTS.items():
        weight = weights.tensors[name]
        found = np.ctypeslib.as_array((ctypes.c_float * expected.size).from_address(weight.address))
        assert weight.address % 64 == 0
        assert weight.shape == expected.shape
        assert np.array_equal(found, expected.reshape(-1))
    weights.close()
    assert artifact.tokenizer_directory == artifact_path / "tokenizer"


def test_sha256sum_can_check_the_seal(artifact_path: Path) -> None:
    digest, name = (artifact_path / SEAL).read_text().split()
    assert name == MANIFEST
    assert hashlib.sha256((artifact_path / MANIFEST).read_bytes()).hexdigest() == digest


def all_files(path: Path) -> list[str]:
    return sorted(file.relative_to(path).as_posix() for file in path.rglob("*") if file.is_file())


@REUSED_FIXTURE
@given(data=st.data())
def test_any_flipped_truncated_or_extended_file_is_refused_by_name(artifact_path: Path, data: st.DataObject) -> None:
    name = data.draw(st.sampled_from(all_files(artifact_path)))
    path = artifact_path / name
    before = path.read_bytes()
    damage = data.draw(st.sampled_from(["flip", "truncate", "extend"]))
    if damage == "flip":
        at = data.draw(st.integers(0, len(before) - 1))
        after = before[:at] + bytes([before[at] ^ data.draw(st.integers(1, 255))]) + before[at + 1 :]
    elif damage == "truncate":
        after = before[: data.draw(st.integers(0, len(before) - 1))]
    else:
        after = before + data.draw(st.binary(min_size=1, max_size=20))
    path.write_bytes(after)
    try:
        with pytest.raises(ArtifactDamagedError) as caught:
            opened(artifact_path)
        assert (MANIFEST if name == SEAL else name) in str(caught.value)
        assert caught.value.exit_code == 4
    finally:
        path.write_bytes(before)


def test_every_missing_file_is_refused_by_name(artifact_path: Path) -> None:
    for name in all_files(artifact_path):
        path = artifact_path / name
        content = path.read_bytes()
        path.unlink()
        with pytest.raises(ArtifactError, match=re.escape(name)):
            opened(artifact_path)
        path.write_bytes(content)
    opened(artifact_path)


def test_a_link_in_place_of_a_file_or_a_folder_is_refused(artifact_path: Path, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    shutil.copytree(artifact_path / "programs", outside)
    golden = artifact_path / "golden.json"
    (tmp_path / "golden").write_bytes(golden.read_bytes())
    golden.unlink()
    golden.symlink_to(tmp_path / "golden")
    with pytest.raises(ArtifactDamagedError, match=r"golden\.json is a link"):
        opened(artifact_path)
    golden.unlink()
    golden.write_bytes(b"[]")
    shutil.rmtree(artifact_path / "programs")
    (artifact_path / "programs").symlink_to(outside)
    with pytest.raises(ArtifactDamagedError, match="programs is a link"):
        opened(artifact_path)


def test_a_fifo_in_place_of_a_file_does_not_hang(artifact_path: Path) -> None:
    (artifact_path / "golden.json").unlink()
    os.mkfifo(artifact_path / "golden.json")
    with pytest.raises(ArtifactDamagedError, match=r"golden\.json"):
        opened(artifact_path)


def test_strangers_are_refused_beside_code_and_left_alone_elsewhere(artifact_path: Path) -> None:
    (artifact_path / "notes.txt").write_text("mine")
    opened(artifact_path)
    (artifact_path / "programs/main/libc.so.6").write_bytes(b"\x7fELF")
    with pytest.raises(ArtifactDamagedError, match=r"libc\.so\.6 is not in the manifest"):
        opened(artifact_path)


def test_a_damaged_weight_is_found_although_it_was_verified_before(
    artifact_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pllm.runtime.file_hash._SETTLED_NS", -(10**18))  # remember files however young they are
    opened(artifact_path)
    weight = artifact_path / "weights/00001.safetensors"
    stamp = weight.stat()
    content = bytearray(weight.read_bytes())
    content[-1] ^= 1
    weight.write_bytes(content)
    os.utime(weight, ns=(stamp.st_atime_ns, stamp.st_mtime_ns))  # the change time still tells
    with pytest.raises(ArtifactDamagedError, match="00001"):
        opened(artifact_path)


def nested(document: dict[str, Any]) -> None:
    for _ in range(3):
        document["name"] = {"name": document["name"]}


MISUSES: dict[str, Callable[[dict[str, Any]], None]] = {
    "parent path": lambda d: d["files"].update({"../outside": d["files"]["golden.json"]}),
    "absolute path": lambda d: d["files"].update({"/etc/passwd": d["files"]["golden.json"]}),
    "dot path": lambda d: d["files"].update({"./golden.json": d["files"]["golden.json"]}),
    "control character": lambda d: d["files"].update({"a\x00b": d["files"]["golden.json"]}),
    "program not listed": lambda d: d["programs"][0].update(file="../../usr/lib/libc.so.6"),
    "operators not listed": lambda d: d.update(operators=["ops/other.so"]),
    "weights not listed": lambda d: d["weights"].update(files=["weights/../../x.safetensors"]),
    "no programs": lambda d: d.update(programs=[]),
    "negative shape": lambda d: d["programs"][0]["constants"][0].update(shape=[-15, -4]),
    "no shape": lambda d: d["programs"][0]["constants"][0].pop("shape"),
    "negative size": lambda d: d["files"]["golden.json"].update(size=-1),
    "absurd size": lambda d: d["files"]["golden.json"].update(size=2**80),
    "no hash": lambda d: d["files"]["golden.json"].update(sha256="0"),
    "unknown field": lambda d: d.update(surprise=1),
    "missing field": lambda d: d.pop("kv"),
    "wrong type": lambda d: d["model"].update(vocab_size="15"),
    "zero block": lambda d: d["kv"].update(block_size=0),
    "unknown KV dtype": lambda d: d["kv"].update(dtype="int3"),
    "ledger contradicts KV": lambda d: d["memory"].update(kv_block=1),
    "negative ledger": lambda d: d["memory"].update(runtime=-1),
    "free dimension": lambda d: d["programs"][0]["inputs"][0].update(shape=["Q"]),
    "bad memory": lambda d: d["engine"].update(memory="lots"),
    "nested": nested,
}


@pytest.mark.parametrize("misuse", MISUSES)
def test_a_manifest_that_contradicts_itself_is_refused(artifact_path: Path, misuse: str) -> None:
    rewrite(artifact_path, MISUSES[misuse])
    with pytest.raises(ArtifactDamagedError, match=MANIFEST):
        Artifact.read(artifact_path)


@pytest.mark.parametrize(
    "document",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b"\xff\xfe",
        b"[" * 1_000_000,
        b'{"a":' * 500_000,
        b'{"format_version": %d}' % FORMAT_VERSION,
    ],
    ids=["empty", "open", "list", "null", "not text", "deep list", "deep object", "bare"],
)
def test_a_manifest_that_is_no_manifest_is_refused(artifact_path: Path, document: bytes) -> None:
    write_document(artifact_path, document)
    with pytest.raises(ArtifactDamagedError, match=MANIFEST):
        Artifact.read(artifact_path)


def test_a_huge_manifest_is_not_read_into_memory(artifact_path: Path) -> None:
    with (artifact_path / MANIFEST).open("r+b") as file:
        file.truncate(1 << 40)  # a sparse file
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(ArtifactDamagedError, match=MANIFEST):
        Artifact.read(artifact_path)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 256 << 10


def test_weights_other_than_counted_are_refused(artifact_path: Path) -> None:
    rewrite(artifact_path, lambda d: d["weights"].update(num_tensors=4))  # type: ignore[attr-defined,index]
    with pytest.raises(ArtifactDamagedError, match="counts 4 weights"):
        opened(artifact_path).map_weights()


@pytest.mark.parametrize("name", ["golden.json", "weights/00001.safetensors"])
def test_a_file_that_may_not_be_read_is_named(name: str, artifact_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opens = Path.open

    def opens_but_one(self: Path, *arguments: Any, **more: Any) -> Any:
        if self == artifact_path / name:  # root may read everything: no mode of the file would do
            raise PermissionError(errno.EACCES, "Permission denied", str(self))
        return opens(self, *arguments, **more)

    monkeypatch.setattr(Path, "open", opens_but_one)
    with pytest.raises(ArtifactDamagedError, match=rf"{name} cannot be read: Permission denied"):
        opened(artifact_path).map_weights()


def test_no_artifact_is_told_from_a_damaged_one(tmp_path: Path, artifact_path: Path) -> None:
    with pytest.raises(ArtifactError, match="it is a file"):
        Artifact.read(artifact_path / MANIFEST)
    with pytest.raises(ArtifactError, match=r"does not exist.*pllm build") as caught:
        Artifact.read(tmp_path / "nowhere")
    assert not isinstance(caught.value, ArtifactDamagedError)


def test_another_format_is_refused_with_the_remedy_though_its_fields_are_unknown(artifact_path: Path) -> None:
    write_document(artifact_path, json.dumps({"format_version": 99, "novelty": []}).encode())
    with pytest.raises(ArtifactMismatchError, match=r"format 99.*pllm build"):
        Artifact.read(artifact_path)


@pytest.mark.parametrize(
    ("change", "machine", "said"),
    [
        ({"torch": "9.9.9"}, {}, r"torch 9\.9\.9.*pip install torch==9\.9\.9"),
        ({"isa": ["avx2", "amx_tile"]}, {"features": frozenset({"avx2"})}, r"lacks \(amx_tile\)"),
        ({"glibc": "99.1"}, {}, r"glibc 99\.1"),
        ({"glibc": "2.9"}, {"glibc": "2.36"}, None),
        ({"machine": "riscv64"}, {}, "riscv64"),
        ({"operators": ABI_VERSION}, {}, None),
        ({"operators": ABI_VERSION - 1}, {}, rf"operators have version {ABI_VERSION - 1}.*pllm build"),
    ],
)
def test_another_machine_is_refused_with_the_command_that_mends_it(
    artifact_path: Path, change: dict[str, Any], machine: dict[str, Any], said: str | None
) -> None:
    rewrite(artifact_path, lambda d: d["requires"].update(change))  # type: ignore[attr-defined]
    here = replace(Machine.this(), **machine)
    if said is None:
        Artifact.open(artifact_path, machine=here).wait_verified()
        return
    with pytest.raises(ArtifactMismatchError, match=said) as caught:
        Artifact.open(artifact_path, machine=here)
    assert "pllm build tiny.toml" in str(caught.value)


def test_an_artifact_that_calls_no_torch_needs_none(artifact_path: Path) -> None:
    def change(document: Any) -> None:
        document["requires"]["torch"] = None
        document["programs"][0]["calls_torch"] = False

    rewrite(artifact_path, change)
    Artifact.open(artifact_path, machine=replace(Machine.this(), torch="")).wait_verified()


def test_a_program_that_calls_torch_must_say_which(artifact_path: Path) -> None:
    rewrite(artifact_path, lambda d: d["requires"].update(torch=None))  # type: ignore[attr-defined]
    with pytest.raises(ArtifactDamagedError, match=r"requires\.torch is missing"):
        Artifact.read(artifact_path)


def test_the_same_content_makes_the_same_bytes(tmp_path: Path) -> None:
    first, second = make_artifact(tmp_path / "a/tiny"), make_artifact(tmp_path / "b/tiny")
    assert all_files(first) == all_files(second)
    for name in all_files(first):
        assert (first / name).read_bytes() == (second / name).read_bytes()

"""Packing: an artifact or none, whatever happens meanwhile."""

import errno
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import NoReturn

import pytest

from pllm.build import pack
from pllm.build.pack import build_lock, stage
from pllm.runtime.artifact import Artifact
from pllm.runtime.errors import BuildError
from pllm.runtime.machine import Machine

from .sealed import fill, make_artifact, manifest_of


def visible(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if not path.name.endswith(".lock"))


def test_scratch_files_are_no_part_of_the_artifact(tmp_path: Path) -> None:
    target = tmp_path / "tiny"
    with build_lock(target, lambda: None), stage(target) as staging:
        (staging.scratch / "object.o").write_bytes(b"x")
        weights = fill(staging)
        staging.seal(lambda files: manifest_of(files, weights, Machine.this()))
    assert visible(tmp_path) == ["tiny"]
    assert not list(target.rglob("*.o"))


def test_a_build_that_raises_leaves_nothing(tmp_path: Path) -> None:
    target = tmp_path / "tiny"
    with pytest.raises(RuntimeError), build_lock(target, lambda: None), stage(target) as staging:
        fill(staging)
        raise RuntimeError
    assert visible(tmp_path) == []


def test_an_artifact_is_replaced_whole_and_kept_where_its_successor_fails(artifact_path: Path) -> None:
    before = artifact_path.stat().st_ino
    with pytest.raises(RuntimeError), build_lock(artifact_path, lambda: None), stage(artifact_path) as staging:
        fill(staging)
        raise RuntimeError
    assert artifact_path.stat().st_ino == before
    make_artifact(artifact_path)
    assert artifact_path.stat().st_ino != before
    Artifact.open(artifact_path).wait_verified()
    assert visible(artifact_path.parent) == ["tiny"]


KILLED_AT = ["fill", "seal", "publish"]


@pytest.mark.parametrize("moment", KILLED_AT)
def test_a_killed_build_leaves_no_artifact_and_the_next_one_cleans_up(tmp_path: Path, moment: str) -> None:
    target = tmp_path / "tiny"
    build = f"""
import os, sys, signal
sys.path.insert(0, {str(Path(__file__).parent.parent.parent)!r})
from pathlib import Path
from tests.artifact.sealed import fill, manifest_of
from pllm.build import pack
from pllm.runtime.machine import Machine
die = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
target = Path({str(target)!r})
with pack.build_lock(target, lambda: None), pack.stage(target) as staging:
    weights = fill(staging)
    if {moment!r} == "fill":
        die()
    if {moment!r} == "publish":
        pack.Staging._publish = die
    staging.seal(lambda files: die() if {moment!r} == "seal" else manifest_of(files, weights, Machine.this()))
"""
    code = subprocess.run([sys.executable, "-c", build], check=False).returncode
    assert code == -signal.SIGKILL
    assert not target.exists()
    assert len(visible(tmp_path)) == 1  # the dead build's folder
    make_artifact(target)
    assert visible(tmp_path) == ["tiny"]
    Artifact.open(target).wait_verified()


def test_two_builds_at_once_take_turns(tmp_path: Path) -> None:
    target = tmp_path / "tiny"
    waited = threading.Event()
    order: list[str] = []

    def second() -> None:
        with build_lock(target, waited.set):
            order.append("second")

    with build_lock(target, lambda: None):
        thread = threading.Thread(target=second)
        thread.start()
        assert waited.wait(timeout=30)
        order.append("first")
    thread.join(timeout=30)
    assert order == ["first", "second"]


@pytest.mark.parametrize("cause", [errno.ENOSPC, errno.EROFS, errno.EACCES, errno.EDQUOT])
def test_a_disk_that_cannot_be_written_is_one_line(tmp_path: Path, cause: int, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: object, **__: object) -> NoReturn:
        raise OSError(cause, os.strerror(cause))

    target = tmp_path / "tiny"
    monkeypatch.setattr(pack, "write_safetensors", fails)
    with pytest.raises(BuildError) as caught, build_lock(target, lambda: None), stage(target) as staging:
        fill(staging)
    assert os.strerror(cause) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert visible(tmp_path) == []


def test_a_full_disk_for_real(tmp_path: Path) -> None:
    full = Path("/dev/full")
    with pytest.raises(BuildError, match="No space left on device"), stage(tmp_path / "tiny"):
        full.write_bytes(b"x")


def test_a_target_below_a_file_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(BuildError, match="cannot be written"), build_lock(tmp_path / "file/tiny", lambda: None):
        pass


def test_a_folder_that_is_no_artifact_is_never_replaced(tmp_path: Path) -> None:
    target = tmp_path / "precious"
    target.mkdir()
    (target / "thesis.txt").write_text("irreplaceable")
    with pytest.raises(BuildError, match="is no artifact"), stage(target):
        pass
    assert (target / "thesis.txt").read_text() == "irreplaceable"


def test_other_builds_folders_are_left_alone(tmp_path: Path) -> None:
    other = tmp_path / ".tiny2.partial-1"
    other.mkdir()
    make_artifact(tmp_path / "tiny")
    assert other.is_dir()


def test_weights_are_cut_into_files_in_load_order(artifact_path: Path) -> None:
    manifest = Artifact.read(artifact_path).manifest
    assert manifest.weights.files == ("weights/00001.safetensors", "weights/00002.safetensors")

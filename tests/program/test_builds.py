"""Whole builds: what the same recipe gives again, what a kill at any moment leaves, and a disk that takes no more."""

import os
import random
import resource
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import msgspec
import pytest

from pllm.build.pipeline import build_artifact
from pllm.build.progress import Progress
from pllm.build.recipe import Recipe
from pllm.runtime.artifact import MANIFEST, SEAL, Artifact
from pllm.runtime.errors import ArtifactError

from .artifacts import LIMITS, Built, recipe_of

MEASURED = "measured/latency.json"


def command(recipe: Path, target: Path) -> list[str]:
    overrides = [word for limit in LIMITS for word in ("--set", limit)]
    return [sys.executable, "-m", "pllm", "build", str(recipe), "--output", str(target), *overrides]


def settled(artifact: Path) -> dict[str, Any]:
    """The manifest without what was measured."""
    document = msgspec.json.decode((artifact / MANIFEST).read_bytes())
    del document["memory"], document["files"][MEASURED]
    del document["engine"]["prefill_chunk"], document["engine"]["tuning"]
    return document


def test_the_same_recipe_gives_the_same_bytes_but_for_what_is_measured(tmp_path: Path) -> None:
    """Another folder, another process, other weights' files of the same content: the same compiled code."""
    first, second = tmp_path / "first", tmp_path / "deep" / "er" / "again"
    for target, home in ((first, tmp_path / "here"), (second, tmp_path / "elsewhere")):
        done = subprocess.run(
            command(recipe_of("llama", home), target), capture_output=True, text=True, check=False, timeout=300
        )
        assert done.returncode == 0, done.stderr
    names = {path.relative_to(second) for path in second.rglob("*") if path.is_file()}
    assert names == {path.relative_to(first) for path in first.rglob("*") if path.is_file()}
    differing = {str(name) for name in names if (second / name).read_bytes() != (first / name).read_bytes()}
    assert differing <= {MANIFEST, SEAL, MEASURED}
    assert settled(second) == settled(first)


@pytest.mark.nightly
@pytest.mark.parametrize("moment", range(8))
def test_a_build_killed_at_any_moment_leaves_no_artifact_or_a_whole_one(
    tiny: Built, tmp_path: Path, moment: int
) -> None:
    """Half of them over an artifact that is there already."""
    recipe, target = recipe_of("llama", tmp_path), tmp_path / "out" / "artifact"
    if moment % 2:
        target.parent.mkdir()
        tiny.copy_to(target)
    delay = random.Random(moment).uniform(3 * moment, 3 * moment + 3)  # a build takes about 25 s
    process = subprocess.Popen(
        [*command(recipe, target), "--force"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        start_new_session=True,
    )  # fmt: skip
    try:
        process.wait(delay)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)  # its compilers, too
        process.wait()
    try:
        Artifact.open(target).wait_verified()
    except ArtifactError as error:
        assert not target.exists(), error
        assert not moment % 2 or list(target.parent.glob(".artifact.partial-*.former")), "it lost the former one"
    build_artifact(Recipe.load(recipe, LIMITS), target, Progress())
    Artifact.open(target).wait_verified()
    assert sorted(path.name for path in target.parent.iterdir()) == [".artifact.lock", "artifact"]


@pytest.mark.parametrize("limit", [4 << 10, 100 << 10])
def test_a_disk_that_takes_no_more_is_one_line(tmp_path: Path, limit: int) -> None:
    """By a limit on the size of files, which fails like a full disk, where it strikes: at the weights, at last."""
    recipe, target = recipe_of("llama", tmp_path), tmp_path / "out" / "artifact"
    target.parent.mkdir()
    done = subprocess.run(
        command(recipe, target), capture_output=True, text=True, check=False, timeout=300,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)),
    )  # fmt: skip
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert done.stderr.count("pllm: error: ") == 1
    last = done.stderr.splitlines()[-1]
    assert last.startswith(f"pllm: error: {target} cannot be written: File too large")
    assert [path.name for path in target.parent.iterdir()] == [".artifact.lock"]


@pytest.mark.nightly
def test_two_builds_at_once_have_one_winner(tmp_path: Path) -> None:
    recipe, target = recipe_of("llama", tmp_path), tmp_path / "out" / "artifact"
    processes = [
        subprocess.Popen(command(recipe, target), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    said = [process.communicate(timeout=300)[1] for process in processes]
    assert [process.returncode for process in processes] == [0, 0]
    assert sorted("isuptodate" in "".join(text.split()) for text in said) == [False, True]
    assert sum("waitingforit" in "".join(text.split()) for text in said) == 1  # lines break anywhere
    Artifact.open(target).wait_verified()

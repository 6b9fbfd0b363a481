"""Models that are no artifacts yet are built once, and found again by what they were built from."""

import json
import os
import signal
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from pllm.runtime import build_cache
from pllm.runtime.build_cache import BuildCache
from pllm.runtime.errors import BuildError, UserInputError
from pllm.runtime.model_options import ModelOptions


class Builds:
    """Stands for the build's process: notes the command and makes the artifact, or fails."""

    def __init__(self) -> None:
        self.commands: list[list[str]] = []
        self.code = 0
        self.before_it_ends: Callable[[], None] = lambda: None

    def run(self, command: list[str]) -> int:
        self.commands.append(command)
        self.before_it_ends()
        if self.code == 0:
            target = Path(command[command.index("--output") + 1])
            target.mkdir()
            (target / "manifest.json").write_text("{}")
            (target / "weights").write_bytes(b"x" * 1000)
        return self.code


@pytest.fixture
def builds(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Builds:
    builds = Builds()
    monkeypatch.setattr(build_cache, "run_build", builds.run)
    monkeypatch.setenv("PLLM_CACHE", str(tmp_path / "cache"))
    return builds


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    directory = tmp_path / "My-Model"
    directory.mkdir()
    (directory / "config.json").write_text("{}")
    (directory / "model.safetensors").write_bytes(b"weights")
    return directory


def artifact_of(model: object, **options: object) -> Path:
    return ModelOptions.of("LLM", str(model), options).artifact()


def test_built_once(builds: Builds, checkpoint: Path, tmp_path: Path) -> None:
    first = artifact_of(checkpoint)
    assert first.parent == tmp_path / "cache" / "artifacts"
    assert first.name.startswith("my-model-")
    assert artifact_of(checkpoint) == first
    (command,) = builds.commands
    assert command[:5] == [sys.executable, "-P", "-m", "pllm", "build"]
    assert command[5:] == [str(checkpoint), "--output", str(first)]


def test_options_reach_the_build_and_the_key(builds: Builds, checkpoint: Path) -> None:
    options = {
        "dtype": "float",
        "max_model_len": 512,
        "max_num_seqs": 2,
        "quantization": "bf16",
        "revision": "1e3",
        "block_size": 32,
    }
    plain, chosen = artifact_of(checkpoint), artifact_of(checkpoint, **options)
    assert plain != chosen
    flags = builds.commands[1][8:]
    assert flags[::2] == ["--set"] * 6
    assert sorted(flags[1::2]) == [
        "engine.block_size=32",
        "engine.max_model_len=512",
        "engine.max_num_seqs=2",
        'model.dtype="float32"',
        'model.revision="1e3"',
        'quantization.weights="bf16"',
    ]
    assert artifact_of(checkpoint, seed=7, threads=1) == plain, "what only the runtime decides builds nothing"


def test_a_changed_source_is_built_anew(builds: Builds, checkpoint: Path, tmp_path: Path) -> None:
    recipe = tmp_path / "mine.toml"
    recipe.write_text('[model]\nsource = "My-Model"\n')
    seen = {artifact_of(recipe)}
    recipe.write_text('[model]\nsource = "My-Model"\ndtype = "float32"\n')
    seen.add(artifact_of(recipe))
    (checkpoint / "model.safetensors").write_bytes(b"other weights")
    seen.add(artifact_of(recipe))
    os.utime(checkpoint / "config.json", (1, 1))
    seen.add(artifact_of(recipe))
    assert len(seen) == 4
    (checkpoint / "README.md").write_text("about it")
    (checkpoint / ".git").mkdir()
    (checkpoint / ".git" / "config.json").write_text("{}")
    assert artifact_of(recipe) in seen
    assert all(path.name.startswith("mine-") for path in seen)


def test_a_hub_id(builds: Builds) -> None:
    assert artifact_of("Qwen/Qwen3-0.6B").name.startswith("qwen3-0.6b-")
    assert builds.commands[0][5] == "Qwen/Qwen3-0.6B"
    assert artifact_of("Qwen/Qwen3-0.6B", revision="abc") != artifact_of("Qwen/Qwen3-0.6B")


@pytest.mark.parametrize("code, error", [(2, UserInputError), (1, BuildError), (-9, BuildError)])
def test_a_failed_build_leaves_nothing_to_open(
    builds: Builds, checkpoint: Path, code: int, error: type[Exception]
) -> None:
    builds.code = code
    with pytest.raises(error, match="could not be built"):
        artifact_of(checkpoint)
    assert BuildCache().entries() == []
    builds.code = 0
    assert artifact_of(checkpoint).is_dir()


def test_two_that_want_the_same_build_it_once(builds: Builds, checkpoint: Path) -> None:
    others: list[threading.Thread] = []

    def another_comes() -> None:
        others.append(threading.Thread(target=artifact_of, args=(checkpoint,)))
        others[0].start()
        others[0].join(timeout=0.3)  # time enough for a second build to begin, if it may

    builds.before_it_ends = another_comes
    artifact_of(checkpoint)
    others[0].join()
    assert len(builds.commands) == 1


def test_entries_and_clean(builds: Builds, checkpoint: Path) -> None:
    cache = BuildCache()
    assert (cache.entries(), cache.clean()) == ([], 0)
    path = artifact_of(checkpoint, max_num_seqs=2)
    (entry,) = cache.entries()
    assert (entry.path, entry.source, entry.overrides) == (path, str(checkpoint), ("engine.max_num_seqs=2",))
    assert entry.size == 1002
    (path.parent / ".killed").mkdir()
    (path.parent / ".killed" / "part").write_bytes(b"x" * 500)
    assert cache.clean() > 1500
    assert cache.entries() == []
    assert not path.exists()


@pytest.mark.parametrize("model", ["nothing", "./nothing", "no/such/place", "x.toml"])
def test_what_is_no_model(builds: Builds, model: str) -> None:
    with pytest.raises(UserInputError, match="is no model"):
        artifact_of(model)
    assert builds.commands == []


def test_an_artifact_is_opened_where_it_is(builds: Builds, tmp_path: Path) -> None:
    (tmp_path / "manifest.json").write_text(json.dumps({}))
    assert artifact_of(tmp_path) == tmp_path
    assert builds.commands == []


BUILD = """
import os, signal, sys, time
from pathlib import Path

def end(number, _):
    Path(sys.argv[1]).write_text(f"cleaned up after {number}")
    raise SystemExit(128 + number)

signal.signal(signal.SIGTERM, end)
signal.signal(signal.SIGINT, end)
ACT
time.sleep(60)
"""


@pytest.mark.parametrize(
    ("act", "error", "said"),
    [
        ("os.kill(os.getppid(), signal.SIGINT); signal.raise_signal(signal.SIGINT)", KeyboardInterrupt, "2"),
        ("os.kill(os.getppid(), signal.SIGUSR1)", SystemExit, "15"),
    ],
)
def test_a_build_ends_with_who_waits_for_it(tmp_path: Path, act: str, error: type[BaseException], said: str) -> None:
    """A terminal's Ctrl-C reaches both and is not followed by another signal; a stop that reaches one is passed on."""

    def stop(number: int, _: object) -> None:
        raise SystemExit

    note = tmp_path / "note"
    before = signal.signal(signal.SIGUSR1, stop)
    try:
        with pytest.raises(error):
            build_cache.run_build([sys.executable, "-c", BUILD.replace("ACT", act), str(note)])
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert note.read_text() == f"cleaned up after {said}"


def test_a_build_s_exit_code_and_output(capfd: pytest.CaptureFixture[str]) -> None:
    assert build_cache.run_build([sys.executable, "-c", "print('progress'); raise SystemExit(3)"]) == 3
    shown = capfd.readouterr()
    assert (shown.out, shown.err) == ("", "progress\n")

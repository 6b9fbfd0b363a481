"""Two checkouts, each built by its own code: over a repository whose pllm builds a file that says which one made it."""

import subprocess
from pathlib import Path

import pytest

from pllm.runtime.errors import BuildError, UserInputError
from pllm.runtime.gate.checkouts import Pin, built_checkouts

MAKER = """
import sys
from pathlib import Path
recipe, output = sys.argv[2], Path(sys.argv[4])
text = Path(recipe).read_text()
if "broken" in text:
    sys.exit(3)
output.mkdir(parents=True, exist_ok=True)
(output / "made").write_text(Path(__file__).with_name("version").read_text() + text)
"""


def git(folder: Path, *words: str) -> str:
    words = ("-c", "user.name=test", "-c", "user.email=test@example.org", *words)
    done = subprocess.run(["git", "-C", str(folder), *words], capture_output=True, text=True, check=True)
    return done.stdout.strip()


def write(root: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


@pytest.fixture
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A checkout of a pllm of two commits, ``first`` and the newest."""
    root = tmp_path / "repository"
    root.mkdir()
    git(root, "init", "--quiet", "--initial-branch", "main")
    face = {"pllm/__init__.py": "", "pllm/__main__.py": MAKER, "runtime/gate/worker.py": ""}
    write(root, {**face, "pllm/version": "1 ", "recipes/quickstart.toml": "small"})
    git(root, "add", "--all")
    git(root, "commit", "--quiet", "--message", "first")
    git(root, "tag", "first")
    write(root, {"pllm/version": "2 "})
    git(root, "commit", "--quiet", "--all", "--message", "second")
    monkeypatch.chdir(root)
    return root


def refused(
    error: type[Exception], words: str, ref: str | None, pin: Path | None = None, work: Path | None = None
) -> None:
    with pytest.raises(error, match=words), built_checkouts(ref, pin, None, work):
        pass


def made(artifact: Path) -> str:
    return (artifact / "made").read_text()


def test_each_is_built_by_its_own_code(repository: Path) -> None:
    with built_checkouts("first", None, None, None) as (base, new):
        assert (made(base.artifact), made(new.artifact)) == ("1 small", "2 small")
        assert (base.label, new.label) == ("base (first)", "new (this tree)")
        assert base.path is not None
        assert (base.path / "pllm" / "version").read_text() == "1 "
        assert base.environment()["PYTHONPATH"] == str(base.path)
        folder = base.artifact
    assert not folder.exists()
    assert git(repository, "worktree", "list").count("\n") == 0


def test_uncommitted_changes_are_of_the_new_side(repository: Path) -> None:
    write(repository, {"pllm/version": "3 "})
    before = git(repository, "status", "--short")
    with built_checkouts("HEAD", None, None, None) as (base, new):
        assert (made(base.artifact), made(new.artifact)) == ("2 small", "3 small")
    assert git(repository, "status", "--short") == before
    assert git(repository, "stash", "list") == ""


def test_a_folder_that_is_kept_is_used_again(repository: Path, tmp_path: Path) -> None:
    work = tmp_path / "work"
    with built_checkouts("first", None, None, work) as (base, _):
        (base.artifact / "old").touch()
    write(repository, {"pllm/version": "3 "})
    with built_checkouts("first", None, None, work) as (base, new):
        assert (base.artifact / "old").exists()
        assert (made(base.artifact), made(new.artifact)) == ("1 small", "3 small")


def test_a_pin_names_base_and_recipe(repository: Path) -> None:
    write(repository, {"recipes/other.toml": "other", "gate.toml": 'base = "HEAD~1"\nrecipe = "recipes/other.toml"\n'})
    git(repository, "add", "recipes")
    refused(
        UserInputError, r"base \(HEAD~1\) has no recipes/other.toml: name a recipe that both", None, Path("gate.toml")
    )
    with built_checkouts(None, Path("gate.toml"), "recipes/quickstart.toml", None) as (base, _):
        assert made(base.artifact) == "1 small"


@pytest.mark.parametrize("text", ["", 'base = ""', "base = 1", 'base = "x"\nfloor = "y"', "base ="])
def test_a_pin_that_says_nothing(tmp_path: Path, text: str) -> None:
    write(tmp_path, {"gate.toml": text})
    with pytest.raises(UserInputError, match=r"gate\.toml"):
        Pin.read(tmp_path / "gate.toml")
    with pytest.raises(UserInputError, match="cannot be read"):
        Pin.read(tmp_path / "absent.toml")


def test_a_tree_against_itself_is_refused(repository: Path) -> None:
    refused(UserInputError, "this tree is HEAD itself: there is nothing to compare", "HEAD")


@pytest.mark.parametrize("ref", ["absent", "--upload-pack=x", ""])
def test_a_base_that_is_no_commit(repository: Path, ref: str) -> None:
    with pytest.raises(UserInputError, match="there is no commit"), built_checkouts(ref, None, None, None):
        pass


def test_a_new_file_that_git_does_not_know(repository: Path) -> None:
    write(repository, {"runtime/new.py": ""})
    refused(UserInputError, r"git does not know runtime/new.py.*git add it", "first")


def test_a_base_that_is_older_than_the_gate(repository: Path) -> None:
    git(repository, "rm", "--quiet", "runtime/gate/worker.py")
    git(repository, "commit", "--quiet", "--message", "older")
    git(repository, "tag", "older")
    git(repository, "revert", "--no-edit", "HEAD")
    write(repository, {"pllm/version": "4 "})
    refused(UserInputError, r"base \(older\) has no runtime/gate/worker.py: it is older than the gate", "older")


def test_a_build_that_fails(repository: Path) -> None:
    write(repository, {"recipes/quickstart.toml": "broken"})
    refused(BuildError, r"new \(this tree\): pllm build recipes/quickstart.toml ended with exit code 3", "first")
    assert git(repository, "worktree", "list").count("\n") == 0


def test_a_folder_without_git(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    with pytest.raises(UserInputError, match="not a git repository"), built_checkouts("main", None, None, None):
        pass


def test_recipes_of_a_repository_of_ones_own_are_built_by_the_pllm_that_is_installed(
    repository: Path, tmp_path: Path
) -> None:
    """Such a repository has no pllm. What is installed refuses this recipe, in words of its own."""
    git(repository, "rm", "-r", "--quiet", "pllm", "runtime")
    write(repository, {"recipes/quickstart.toml": "[model]\nnonsense = 1\n"})
    git(repository, "commit", "--quiet", "--all", "--message", "recipes alone")
    git(repository, "tag", "alone")
    write(repository, {"recipes/quickstart.toml": "[model]\nnonsense = 2\n"})
    refused(
        BuildError,
        r"base \(alone\): pllm build recipes/quickstart.toml ended with exit code 2",
        "alone",
        None,
        tmp_path / "work",
    )

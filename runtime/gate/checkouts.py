"""Two checkouts of a repository, a recipe of theirs built in each: what ``pllm gate --base-ref`` compares.

Git keeps a worktree for each in a folder; the base is a commit, the new one is this tree as it stands, uncommitted
changes of tracked files included. Checkouts of pllm itself build and run with their own code, handed to the gate as a
folder with a link to their ``pllm``: from a checkout's root itself, ``build/`` and ``kernels/`` would shadow packages
of the same names. Other repositories, of people who keep their recipes there, build with the pllm that is installed.
A build that is fresh is not built again: a folder that is kept makes the next gate quicker, and so does an artifact
that this tree has made already, which both are offered.
"""

import shutil
import subprocess
import tempfile
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from pllm.runtime.artifact import MANIFEST
from pllm.runtime.errors import BuildError, UserInputError
from pllm.runtime.gate.side import Side

__all__ = ["Pin", "built_checkouts"]

_RECIPE = "recipes/quickstart.toml"
_FACE = Path("pllm", "__init__.py")
_WORKER = Path("runtime", "gate", "worker.py")


@dataclass(frozen=True, slots=True)
class Pin:
    """What a gate compares with: ``base``, a commit, a tag or a branch; ``recipe``, within each checkout."""

    base: str
    recipe: str = _RECIPE

    @classmethod
    def read(cls, path: Path) -> "Pin":
        """From a TOML file with these two keys. Raises UserInputError."""
        try:
            found = tomllib.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise UserInputError(f"{path} cannot be read: {error}") from error
        unknown = set(found) - {"base", "recipe"}
        if unknown or not all(isinstance(value, str) for value in found.values()) or not found.get("base"):
            raise UserInputError(f'{path} must say base = "COMMIT", may say recipe = "FILE", and nothing else')
        return cls(**found)


@contextmanager
def built_checkouts(
    ref: str | None, pin: Path | None, recipe: str | None, work: Path | None
) -> Iterator[tuple[Side, Side]]:
    """Base and new, built, in ``work`` or a folder that is removed at the end. Run from within the repository.

    Raises UserInputError where there is no such commit or nothing differs from it, BuildError where a build fails.
    """
    pinned = None if pin is None else Pin.read(pin)
    base = ref or (pinned.base if pinned else "")
    source = recipe or (pinned.recipe if pinned else _RECIPE)
    root = Path(_git(Path.cwd(), "rev-parse", "--show-toplevel"))
    base_commit = _commit(root, base)
    new_commit = _this_tree(root)
    if _git(root, "rev-parse", f"{base_commit}^{{tree}}") == _git(root, "rev-parse", f"{new_commit}^{{tree}}"):
        raise UserInputError(f"this tree is {base} itself: there is nothing to compare; choose an earlier base")
    with tempfile.TemporaryDirectory(prefix="pllm-gate-") as temporary:
        folder = Path(temporary) if work is None else work.absolute()
        try:
            yield (
                _side(root, folder / "base", base_commit, source, f"base ({base})"),
                _side(root, folder / "new", new_commit, source, "new (this tree)"),
            )
        finally:
            if work is None:
                for name in ("base", "new"):
                    _git(root, "worktree", "remove", "--force", str(folder / name / "tree"), required=False)
                _git(root, "worktree", "prune", required=False)


def _side(root: Path, folder: Path, commit: str, recipe: str, label: str) -> Side:
    """A built checkout in ``folder``: ``tree`` the worktree, ``path`` the link to its pllm, ``artifact``."""
    tree, path, artifact = folder / "tree", folder / "path", folder / "artifact"
    folder.mkdir(parents=True, exist_ok=True)
    if (tree / ".git").exists():
        _git(tree, "checkout", "--quiet", "--force", "--detach", commit)
    else:
        _git(root, "worktree", "add", "--quiet", "--force", "--detach", str(tree), commit)
    if not (tree / recipe).is_file():
        raise UserInputError(f"{label} has no {recipe}: name a recipe that both checkouts have, with --recipe")
    offered = root / "artifacts" / Path(recipe).stem
    if (offered / MANIFEST).is_file() and not artifact.exists():
        shutil.copytree(offered, artifact)
    side = Side(label, artifact, _path_to_own_code(tree, path, label))
    command = side.command("pllm", "build", recipe, "--output", str(artifact))
    done = subprocess.run(command, cwd=tree, env=side.environment(), stdout=subprocess.DEVNULL, check=False)
    if done.returncode:
        raise BuildError(f"{label}: pllm build {recipe} ended with exit code {done.returncode}; what it said is above")
    return side


def _path_to_own_code(tree: Path, path: Path, label: str) -> Path | None:
    """A folder with a link to the tree's own pllm; None where the tree is no checkout of pllm."""
    if not (tree / _FACE).is_file():
        return None
    if not (tree / _WORKER).is_file():
        raise UserInputError(f"{label} has no {_WORKER.as_posix()}: it is older than the gate; choose a later base")
    path.mkdir(exist_ok=True)
    link = path / "pllm"
    link.unlink(missing_ok=True)
    link.symlink_to(tree / "pllm")
    return path


def _commit(root: Path, ref: str) -> str:
    found = _git(root, "rev-parse", "--verify", "--quiet", "--end-of-options", f"{ref}^{{commit}}", required=False)
    if not found:
        raise UserInputError(f"there is no commit {ref!r} here: fetch it (a shallow clone has only the newest)")
    return found


def _this_tree(root: Path) -> str:
    """A commit of this tree as it stands, referred to by nothing; HEAD where it is clean."""
    strangers = _git(root, "ls-files", "--others", "--exclude-standard", "build", "runtime", "kernels", "pllm")
    if strangers:
        first = strangers.splitlines()[0]
        raise UserInputError(f"git does not know {first}, so no checkout can have it: git add it, or remove it")
    return _git(root, "stash", "create") or _git(root, "rev-parse", "HEAD")


def _git(folder: Path, *words: str, required: bool = True) -> str:
    try:
        done = subprocess.run(["git", "-C", str(folder), *words], capture_output=True, text=True, check=False)  # noqa: S607
    except FileNotFoundError:
        raise UserInputError("git is not installed, and checkouts are made by it: give two artifacts instead") from None
    if done.returncode and required:
        raise UserInputError(f"git {words[0]}: {done.stderr.strip() or 'failed'}")
    return "" if done.returncode else done.stdout.strip()

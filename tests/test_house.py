"""The house's own rules, where neither ruff nor mypy nor import-linter sees them."""

import ast
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
CODE = ("build", "runtime", "kernels")
FOLDERS = (*CODE, "pllm", "recipes", "tests", ".ci", ".github")
TEXT = (
    ".py",
    ".toml",
    ".md",
    ".cpp",
    ".h",
    ".json",
    ".jinja",
    ".yml",
    ".sh",
    ".gitignore",
    ".importlinter",
    "Makefile",
    "run",
)
HEAVY = ("torch", "transformers", "sympy", "triton", "pydantic", "pllm.build")


def texts() -> Iterator[Path]:
    """The repository's text files: found without git, so that an unpacked archive is checked too."""
    for path in ROOT.iterdir():
        if path.is_file() and (path.name.endswith(TEXT) or path.name == "Containerfile"):
            yield path
    for folder in FOLDERS:
        for at, below, names in os.walk(ROOT / folder):
            below[:] = [name for name in below if name != "__pycache__"]
            yield from (Path(at, name) for name in names if name.endswith(TEXT))


def modules() -> list[Path]:
    """The distribution's modules, each once: not through the symlinks in pllm/."""
    return sorted(path for folder in (*CODE, "pllm") for path in (ROOT / folder).rglob("*.py"))


def imported(path: Path) -> set[str]:
    """The dotted names that a module imports, inside functions too."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def importers(module: str) -> set[str]:
    found = [path for path in modules() if any(f"{name}.".startswith(f"{module}.") for name in imported(path))]
    return {path.relative_to(ROOT).as_posix() for path in found}


def test_the_rules_look_at_something() -> None:
    found = set(texts())
    assert {ROOT / "Makefile", ROOT / "README.md", ROOT / "runtime/llm.py", ROOT / "kernels/cpu/simd.h"} <= found
    assert len(modules()) > 80


def test_no_file_names_a_path_of_one_machine() -> None:
    # Joined here, so that this file does not break its own rule.
    banned = ["/" + name + "/" for name in ("work", "root", "home", "Users")]
    bad = [
        f"{path.relative_to(ROOT)}:{number}"
        for path in texts()
        if path.name not in ("tokenizer.json", "model.safetensors")
        for number, line in enumerate(path.read_text().splitlines(), 1)
        if any(name in line for name in banned)
    ]
    assert bad == []


def test_no_marks_of_unfinished_work() -> None:
    banned = ("TO" + "DO", "FIX" + "ME", "X" * 3, "NotImplemented" + "Error")
    bad = [
        str(path.relative_to(ROOT))
        for path in texts()
        if path.suffix in (".py", ".cpp", ".h") and any(mark in path.read_text() for mark in banned)
    ]
    assert bad == []


@pytest.mark.parametrize("folder", CODE)
def test_the_face_links_to_the_rooms(folder: str) -> None:
    link = ROOT / "pllm" / folder
    assert link.is_symlink()
    assert link.readlink() == Path("..", folder)


def bound(tree: ast.Module) -> set[str]:
    """Names that a module binds at its top level, also under ``if TYPE_CHECKING``."""
    names: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            names.add(node.name)
        elif isinstance(node, ast.Import | ast.ImportFrom):
            names |= {(alias.asname or alias.name).split(".")[0] for alias in node.names}
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            names.add(node.id)
    return names


def exported(tree: ast.Module) -> list[str] | None:
    for node in tree.body:
        if isinstance(node, ast.Assign) and [ast.unparse(target) for target in node.targets] == ["__all__"]:
            names: list[str] = ast.literal_eval(node.value)
            return names
    return None


@pytest.mark.parametrize("path", modules(), ids=lambda path: path.relative_to(ROOT).as_posix())
def test_every_module_says_what_it_exports(path: Path) -> None:
    tree = ast.parse(path.read_text())
    names = exported(tree)
    if names is None:
        # A package's file that only explains, or a program's first file, exports nothing.
        kinds = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.Assign, ast.AnnAssign)
        assert path.name == "__main__.py" or not any(isinstance(node, kinds) for node in tree.body)
        return
    assert len(names) == len(set(names))
    assert set(names) <= bound(tree)
    assert ast.get_docstring(tree)


@pytest.mark.parametrize(
    ("module", "homes"),
    [
        ("transformers", {"build/model_source.py"}),
        ("torch._inductor", {"build/compile.py", "build/inductor.py"}),
        ("pickle", set()),
    ],
)
def test_one_file_opens_each_door(module: str, homes: set[str]) -> None:
    assert importers(module) <= homes


@pytest.mark.parametrize(
    "module",
    ["pllm.runtime.llm", "pllm.runtime.engine_process", "pllm.runtime.server.app", "pllm.runtime.engine_core"],
)
def test_the_runtime_imports_lean(module: str) -> None:
    code = f"import sys, {module}; print([name for name in {HEAVY} if name in sys.modules])"
    shown = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True, check=False)
    assert (shown.stdout.strip(), shown.stderr) == ("[]", "")


def test_serving_on_a_gpu_imports_torch_and_no_compiler() -> None:
    modules = ", ".join(f"pllm.runtime.cuda.{path.stem}" for path in sorted((ROOT / "runtime/cuda").glob("[a-z]*.py")))
    compilers = ("torch._dynamo", "torch._inductor", "transformers", "triton", "pllm.build", "pllm.kernels.cuda")
    code = f"import sys, {modules}; print([name for name in {compilers} if name in sys.modules])"
    shown = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True, check=False)
    assert (shown.stdout.strip(), shown.stderr) == ("[]", "")

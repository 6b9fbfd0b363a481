"""Which of pllm's own sources make an artifact stale."""

import subprocess
import sys
from pathlib import Path

import pytest

from pllm.build import sources
from pllm.build.sources import builder_fingerprint, builder_sources

ROOT = Path(__file__).parents[2]


def names() -> set[str]:
    return {path.relative_to(sources._ROOT).as_posix() for path in builder_sources()}


def test_what_the_build_runs_is_among_them_and_what_only_serves_is_not() -> None:
    found = names()
    assert {"build/pipeline.py", "build/passes/__init__.py", "kernels/reference.py", "kernels/cpu/linear.cpp"} <= found
    assert {f"runtime/{name}.py" for name in ("scheduler", "sampling", "program", "manifest", "tokenizer")} <= found
    assert not any(name.startswith("runtime/server/") or name.endswith("_cli.py") for name in found & runtime())
    assert found.isdisjoint({"runtime/llm.py", "runtime/metrics.py", "runtime/build_cache.py"})


def runtime() -> set[str]:
    return {path.relative_to(ROOT).as_posix() for path in (ROOT / "runtime").rglob("*.py")}


def test_every_module_that_the_stages_load_is_among_them() -> None:
    """What reading finds against what importing does."""
    code = (
        "import sys; from pllm.build.pipeline import STAGES; [stage.function() for stage in STAGES]; "
        "import pllm.build.measurement; "
        "loaded = [module for name, module in sys.modules.items() if name.startswith('pllm.runtime.')]; "
        "print(*(module.__file__ for module in loaded), sep='\\n')"
    )
    shown = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True, check=True)
    loaded = {Path(line).resolve() for line in shown.stdout.split()}
    loaded = {path for path in loaded if path.name != "__init__.py"}  # the packages' own files hold a docstring each
    assert len(loaded) > 20
    assert loaded <= {path.resolve() for path in builder_sources()}


def test_a_change_in_one_of_them_is_a_change(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = {
        "build/a.py": "from pllm.runtime import (\n    used,  # this\n    wide as many,\n)\nfrom os import path\n",
        "kernels/cpu/k.cpp": "int a;",
        "runtime/__init__.py": "",
        "runtime/used.py": "def f():\n    import pllm.runtime.deep.inner\n",
        "runtime/wide.py": "from pllm.runtime.used import f",
        "runtime/deep/__init__.py": "",
        "runtime/deep/inner.py": "x = 1\n",
        "runtime/served.py": "from pllm.runtime import used\n",
    }
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    monkeypatch.setattr(sources, "_ROOT", tmp_path)
    assert names() == set(files) - {"runtime/served.py", "runtime/deep/__init__.py"}
    before = builder_fingerprint()
    (tmp_path / "runtime/served.py").write_text("y = 2\n")
    assert builder_fingerprint() == before
    for name in ("build/a.py", "kernels/cpu/k.cpp", "runtime/deep/inner.py"):
        (tmp_path / name).write_text((tmp_path / name).read_text() + "\n")
        assert builder_fingerprint() != before
        before = builder_fingerprint()

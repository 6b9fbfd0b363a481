"""What the runtime imports, counted in a process of its own that serves a request.

``python -P -m pllm.runtime.gate.count_imports ARTIFACT engine|library|server`` writes one JSON object on standard
output. It imports next to nothing itself.
"""

import builtins
import sys
from importlib import import_module
from typing import Any

__all__ = ["main"]

_SERVER = ("cli", "launch", "log", "serve", "service", "settings", "supervisor")
"""What ``pllm run`` imports of `pllm.runtime.server`, in the order of its start."""


class _Asked:
    """Stands where ``import`` statements end: notes what those in pllm's own modules ask for."""

    def __init__(self) -> None:
        self.names: set[str] = set()
        self._import = builtins.__import__
        builtins.__import__ = self

    def __call__(self, name: str, globals: Any = None, locals: Any = None, fromlist: Any = (), level: int = 0) -> Any:
        module = self._import(name, globals, locals, fromlist, level)
        if globals is not None and _is_ours(globals.get("__name__", "")) and not level:
            wanted = [name, *(f"{name}.{each}" for each in fromlist or ())]
            self.names.update(each for each in wanted if each in sys.modules and not _is_passed_over(each))
        return module


def _is_passed_over(module: str) -> bool:
    """Ours, and the private modules that others' C code imports in our name."""
    return _is_ours(module) or "._" in module


def _is_ours(module: str) -> bool:
    return module == "pllm" or module.startswith("pllm.")


def _engine(artifact: str) -> None:
    """The engine process, from its first line to a request's last token."""
    import_module("pllm.runtime.engine_process")
    core = import_module("pllm.runtime.engine_core").EngineCore.open(import_module("pathlib").Path(artifact))
    params = import_module("pllm.runtime.sampling_params").SamplingParams(max_tokens=2, temperature=0.8)
    core.engine.submit(import_module("pllm.runtime.sequence").Request("0", (1, 2, 3), params, (), 0.0))
    while core.engine.has_unfinished:
        core.engine.step()
    core.wait_settled()  # grammars that the artifact brings along are compiled in a thread
    core.close()


def _library(artifact: str) -> None:
    """``from pllm import LLM``, and an answer."""
    llm = import_module("pllm.runtime.llm").LLM(artifact)
    params = import_module("pllm.runtime.sampling_params").SamplingParams(max_tokens=2, temperature=0.8)
    llm.generate([[1, 2, 3]], params, use_tqdm=False)
    llm._core.wait_settled()
    llm.close()


def _server(_: str) -> None:
    """The API process until it listens."""
    for name in _SERVER:
        import_module(f"pllm.runtime.server.{name}")


def main() -> int:
    """Count, and write."""
    artifact, what = sys.argv[1:]
    asked = _Asked()
    serve = {"engine": _engine, "library": _library, "server": _server}[what]
    try:
        serve(artifact)
    except Exception as error:
        code = getattr(error, "exit_code", None)
        if code is None:
            raise
        print(error, file=sys.stderr)
        return int(code)
    loaded = sorted(sys.modules)
    import json  # noqa: PLC0415  (not among what is counted)

    ours = [name for name in loaded if _is_ours(name) and not name.startswith("pllm.runtime.gate")]
    found = {
        f"modules of pllm, {what}": " ".join(ours),
        f"modules that pllm asks for, {what}": " ".join(sorted(asked.names)),
        f"modules in all, {what}": len(loaded),
    }
    print(json.dumps(found))
    return 0


if __name__ == "__main__":
    sys.exit(main())

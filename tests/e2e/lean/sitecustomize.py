"""Imported by every Python that starts with this folder on its PYTHONPATH: a world in which only serving is possible.

What a server must not need cannot be imported, though it can be found, as a library without Python may be; and each
program that is started and each pickle that is read is written down, a line each, in the file PLLM_AUDIT.
"""

import os
import sys
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path

BLOCKED = (
    "huggingface_hub",
    "pllm.build",
    "safetensors",
    "setuptools",
    "sympy",
    "torch",
    "transformers",
    "triton",
)
AUDITED = ("os.exec", "os.posix_spawn", "os.system", "pickle.find_class", "subprocess.Popen")


class Refusal(Loader):
    def create_module(self, spec: ModuleSpec) -> None:
        raise ImportError(f"{spec.name} is blocked here", name=spec.name)

    def exec_module(self, module: object) -> None:
        raise AssertionError("no module was made")


class Blocker(MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        spec = PathFinder.find_spec(name, path, target) if name in BLOCKED else None
        if spec is not None:
            spec.loader = Refusal()
        return spec


def write_down(event: str, arguments: tuple[object, ...]) -> None:
    if event in AUDITED:
        with Path(os.environ["PLLM_AUDIT"]).open("a", encoding="utf-8") as file:
            file.write(f"{event} {arguments[:2]}\n")


sys.meta_path.insert(0, Blocker())
sys.addaudithook(write_down)

"""Inductor, as far as a build for CUDA uses it: graphs become C++ and kernels, and nothing of them runs.

Left alone, Inductor times the kernels of a program for a GPU while it compiles it, on arguments that it makes up. Ours
take indices from tensors: they would read and write wherever random numbers point. And their configurations are decided
by then. So kernels are compiled here and not run, which needs no memory either: weights are shapes.
"""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch
from torch._inductor import aot_compile, config, graph
from torch._inductor.codegen.wrapper import PythonWrapperCodegen
from torch._inductor.runtime.triton_heuristics import CachingAutotuner

__all__ = ["write_cuda_sources"]


def write_cuda_sources(module: torch.fx.GraphModule, inputs: Sequence[torch.Tensor], folder: Path) -> list[Path]:
    """Let Inductor write a program's C++ and compile its kernels, as objects to link; all that it wrote to ``folder``.

    The parameters of the module and its inputs are fake tensors on the GPU; symbolic sizes stay symbolic. Raises
    whatever Inductor raises.
    """
    options: dict[str, Any] = {
        "aot_inductor.package": True,
        "aot_inductor.package_constants_in_so": False,
        "aot_inductor.package_cpp_only": True,
        "aot_inductor.model_name_for_generated_files": "model",
        "aot_inductor.output_path": str(folder),
        "aot_inductor.embed_kernel_binary": True,
        "aot_inductor.emit_multi_arch_kernel": False,
        "aot_inductor.precompile_headers": False,
        # Else Inductor writes small constants into the code, and the traced model has no values to be written.
        "always_keep_tensor_constants": True,
        "joint_graph_constant_folding": False,
        # The C++ and the kernels in one pass.
        "triton.autotune_at_compile_time": True,
        # Kernels are few and mostly ours; worker processes would have to be told what is replaced below.
        "compile_threads": 1,
    }
    with _no_kernel_runs():
        written: Any = aot_compile(module, tuple(inputs), {}, options=options)
    return [path for path in map(Path, map(str, written)) if path.is_relative_to(folder)]


@contextmanager
def _no_kernel_runs() -> Iterator[None]:
    with ExitStack() as stack:
        for owner, name, replacement in (
            (PythonWrapperCodegen, "generate_and_run_autotune_block", _compile_kernels),
            # It compares addresses, and there are none.
            (graph, "is_same_tensor", _is_same_tensor),
        ):
            stack.callback(setattr, owner, name, getattr(owner, name))
            setattr(owner, name, replacement)
        yield


def _is_same_tensor(first: torch.Tensor, second: torch.Tensor) -> bool:
    return first is second


def _compile_kernels(wrapper: Any) -> None:
    """In place of Inductor's block of code that defines the kernels and then runs each: define them only."""
    wrapper.kernel_autotune_defs.splice("\nasync_compile.wait(globals())\ndel async_compile\n")
    scope: dict[str, Any] = {}
    exec(wrapper.kernel_autotune_defs.getvalue(), scope)  # noqa: S102 Inductor's own code
    for kernel in scope.values():
        if not isinstance(kernel, CachingAutotuner):
            continue
        if not kernel.launchers:
            kernel.precompile()
        # Of Inductor's own choices the first: it is the one that its heuristics begin with.
        # A kernel's file would be named by its function, and those of one function with other constants be one file.
        with config.patch({"aot_inductor.package_cpp_only": False}):
            kernel.save_gpu_kernel(0, kernel.launchers[0])

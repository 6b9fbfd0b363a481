"""A compiled program for a GPU, run by torch's own loader of AOTInductor packages.

The loader is torch's C++ (`AOTIModelPackageLoader`); neither Dynamo nor Inductor is imported for it. Torch 2.11 opens
packages as the one file that they are (.pt2), and not the folder that they unpack to.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pllm.runtime.errors import ArtifactDamagedError, ArtifactMismatchError, PllmError
from pllm.runtime.manifest import ProgramInfo, TensorInfo

__all__ = ["TorchProgram"]

_MODEL = "model"


class TorchProgram:
    """An opened program with its weights. One thread runs it, on the current stream."""

    def __init__(self, info: ProgramInfo, loader: Any) -> None:
        self.info = info
        self._loader = loader

    @classmethod
    def open(
        cls, info: ProgramInfo, package: Path, weights: Mapping[str, Tensor], device: torch.device
    ) -> "TorchProgram":
        """Load the package and give it its weights, which lie on the device and are shared, not copied.

        Raises ArtifactMismatchError where it cannot be loaded here, ArtifactDamagedError where the manifest, the
        package and the weights do not agree.
        """
        index = (device.index or 0) if device.type == "cuda" else -1
        try:
            # One runner, whose run neither locks nor waits: what may be captured.
            loader = torch._C._aoti.AOTIModelPackageLoader(str(package), _MODEL, True, 1, index)
        except RuntimeError as error:
            reason = str(error).strip().splitlines()[0]
            raise ArtifactMismatchError(f"{package} cannot be loaded: {reason}; build the artifact again") from error
        constants = {constant.name: constant for constant in info.constants}
        if set(loader.get_constant_fqns()) != set(constants):
            raise ArtifactDamagedError(f"{package}: its constants are not those of the manifest", package)
        given = {}
        for name, constant in constants.items():
            weight = weights.get(constant.weight)
            if weight is None or tuple(weight.shape) != constant.shape or weight.device.type != device.type:
                raise ArtifactDamagedError(
                    f"{package}: no weight on {device} of the shape {list(constant.shape)} for its constant {name!r}; "
                    f"build the artifact again",
                    package,
                )
            given[name] = weight
        if given:
            # Not the inactive buffer, all of them, and owned by us.
            loader.load_constants(given, False, True, True)
        return cls(info, loader)

    def run(self, inputs: Mapping[str, Tensor]) -> list[Tensor]:
        """One forward call: launches it, and returns its outputs. Raises PllmError for inputs that are not as the
        program's `info` says: AOTInductor does not check them."""
        names = [info.name for info in self.info.inputs]
        if inputs.keys() != set(names):
            raise PllmError(f"program {self.info.name!r} takes {names}, not {list(inputs)}")
        bound: dict[str, int] = {}
        for info in self.info.inputs:
            self._check(info, inputs[info.name], bound)
        outputs: list[Tensor] = self._loader.run([inputs[name] for name in names])
        return outputs

    def _check(self, info: TensorInfo, tensor: Tensor, bound: dict[str, int]) -> None:
        fits = str(tensor.dtype) == f"torch.{info.dtype}" and tensor.ndim == len(info.shape) and tensor.is_contiguous()
        if fits:
            for term, size in zip(info.shape, tensor.shape, strict=True):
                if isinstance(term, str):
                    dim = self.info.dims[term]
                    fits = fits and dim.min <= size <= dim.max and bound.setdefault(term, size) == size
                else:
                    fits = fits and term == size
        if not fits:
            raise PllmError(
                f"program {self.info.name!r}: {info.name} is {tensor.dtype}{list(tensor.shape)}, and must be "
                f"{info.dtype}{list(info.shape)}, contiguous, with {bound}"
            )

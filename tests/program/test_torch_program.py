"""A package run by torch's loader: on a CPU, where the loader is the same."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch._inductor import aoti_compile_and_package
from torch.export import Dim, export

from pllm.runtime.cuda.program import TorchProgram
from pllm.runtime.errors import ArtifactDamagedError, ArtifactMismatchError, PllmError
from pllm.runtime.manifest import Constant, DimRange, ProgramInfo, TensorInfo

CPU = torch.device("cpu")
INFO = ProgramInfo(
    name="decode",
    file="decode.pt2",
    dims={"rows": DimRange(min=1, max=64)},
    inputs=(
        TensorInfo(name="x", dtype="float32", shape=("rows", 3)),
        TensorInfo(name="y", dtype="float32", shape=(3,)),
    ),
    outputs=(TensorInfo(name="out", dtype="float32", shape=("rows", 4)),),
    constants=(Constant(name="weight", weight="w", shape=(4, 3)),),
)


class Product(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(4, 3))

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.linear(x + y, self.weight)


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("package") / "decode.pt2"
    inputs = (torch.zeros(5, 3), torch.zeros(3))
    program = export(Product(), inputs, dynamic_shapes=({0: Dim("rows", min=1, max=64)}, None))
    options = {"aot_inductor.package_constants_in_so": False, "always_keep_tensor_constants": True}
    aoti_compile_and_package(program, package_path=str(path), inductor_configs=options)
    return path


def test_it_computes_with_weights_that_stay_ours(package: Path) -> None:
    weight = torch.arange(12.0).reshape(4, 3)
    program = TorchProgram.open(INFO, package, {"w": weight, "another": torch.zeros(1)}, CPU)
    x, y = torch.randn(7, 3), torch.randn(3)
    torch.testing.assert_close(program.run({"y": y, "x": x})[0], (x + y) @ weight.T)
    weight.neg_()  # shared, not copied
    torch.testing.assert_close(program.run({"x": x, "y": y})[0], (x + y) @ weight.T)


@pytest.mark.parametrize(
    "change",
    [
        lambda inputs: inputs | {"x": torch.zeros(7, 4)},
        lambda inputs: inputs | {"x": torch.zeros(65, 3)},
        lambda inputs: inputs | {"x": torch.zeros(7, 3, dtype=torch.float64)},
        lambda inputs: inputs | {"x": torch.zeros(3, 7).T},
        lambda inputs: inputs | {"z": torch.zeros(1)},
        lambda inputs: {"x": inputs["x"]},
    ],
)
def test_inputs_that_do_not_fit_are_refused(package: Path, change: Callable[..., dict[str, torch.Tensor]]) -> None:
    program = TorchProgram.open(INFO, package, {"w": torch.zeros(4, 3)}, CPU)
    with pytest.raises(PllmError, match="program 'decode'"):
        program.run(change({"x": torch.zeros(7, 3), "y": torch.zeros(3)}))


@pytest.mark.parametrize("weights", [{}, {"w": torch.zeros(3, 4)}])
def test_weights_that_do_not_fit_are_refused(package: Path, weights: dict[str, torch.Tensor]) -> None:
    with pytest.raises(ArtifactDamagedError, match=r"no weight on cpu of the shape \[4, 3\]"):
        TorchProgram.open(INFO, package, weights, CPU)


def test_a_package_that_is_none_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "decode.pt2"
    path.write_bytes(b"no package")
    with pytest.raises(ArtifactMismatchError, match="cannot be loaded"):
        TorchProgram.open(INFO, path, {}, CPU)

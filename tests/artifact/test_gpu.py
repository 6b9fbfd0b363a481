"""The GPU by its driver's word, and which GPUs an artifact is refused on, before anything is loaded."""

import ctypes
from argparse import Namespace
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pllm.cli import main
from pllm.runtime import check_cli
from pllm.runtime.artifact import Artifact
from pllm.runtime.errors import ArtifactDamagedError, ArtifactMismatchError, DoesNotFitError
from pllm.runtime.gpu import Gpu, find_gpu
from pllm.runtime.machine import Machine
from pllm.runtime.manifest import tuning_notice
from pllm.runtime.memory import MemoryLedger, MemoryPlan, setting_for

from .sealed import rewrite

H200 = Gpu("NVIDIA H200", "sm_90", driver_cuda=13000, total_memory=140 << 30, free_memory=130 << 30)


class Driver:
    """A stand-in for libcuda with one H200; `failing` calls return an error, and `calls` are those made."""

    def __init__(self, *failing: str, count: int = 1) -> None:
        self.failing = failing
        self.count = count
        self.calls: list[str] = []

    def __getattr__(self, name: str) -> Any:
        def call(*arguments: Any) -> int:
            self.calls.append(name)
            if name in self.failing:
                return 100
            out = getattr(arguments[0], "_obj", arguments[0]) if arguments else None
            match name:
                case "cuDeviceGetCount":
                    out.value = self.count
                case "cuDriverGetVersion":
                    out.value = 13000
                case "cuDeviceGetName":
                    out.value = b"NVIDIA H200"
                case "cuDeviceGetAttribute":
                    out.value = {75: 9, 76: 0}[arguments[1]]
                case "cuMemGetInfo_v2":
                    out.value, arguments[1]._obj.value = 130 << 30, 140 << 30
            return 0

        return call


def test_the_driver_describes_its_gpu_and_gets_its_context_back() -> None:
    driver = Driver()
    assert find_gpu(lambda name: driver) == H200
    assert driver.calls[-4:] == [
        "cuCtxPushCurrent_v2", "cuMemGetInfo_v2", "cuCtxPopCurrent_v2", "cuDevicePrimaryCtxRelease_v2"
    ]  # fmt: skip


@pytest.mark.parametrize("call", ["cuInit", "cuDeviceGetCount", "cuDeviceGetAttribute", "cuDevicePrimaryCtxRetain"])
def test_a_driver_that_fails_has_no_gpu(call: str) -> None:
    assert find_gpu(lambda name: Driver(call)) is None


@pytest.mark.parametrize("call", ["cuCtxPushCurrent_v2", "cuMemGetInfo_v2"])
def test_a_context_that_fails_is_given_back(call: str) -> None:
    driver = Driver(call)
    assert find_gpu(lambda name: driver) is None
    assert driver.calls[-1] == "cuDevicePrimaryCtxRelease_v2"


def test_no_driver_and_no_device_are_no_gpu() -> None:
    def missing(name: str) -> ctypes.CDLL:
        raise OSError(name)

    assert find_gpu(missing) is None
    assert find_gpu(lambda name: Driver(count=0)) is None


def for_cuda(artifact_path: Path, **ledger: int) -> Path:
    """The sealed artifact, as if it were built for an H200."""

    def change(document: Any) -> None:
        gpu = {"sm": "sm_90", "name": "NVIDIA H200", "cuda": 13000}
        document["requires"].update({"device": "cuda", "gpu": gpu})
        document["memory"].update(ledger)

    rewrite(artifact_path, change)
    return artifact_path


def with_gpu(gpu: Gpu | None, cuda: str = "13.0") -> Machine:
    return replace(Machine.this(), gpu=gpu, torch_cuda=cuda)


@pytest.mark.parametrize(
    ("machine", "said"),
    [
        (with_gpu(None), r"no GPU can be used here.*CUDA_VISIBLE_DEVICES"),
        (with_gpu(H200, cuda=""), r"without CUDA; install torch .* with CUDA 13\.0"),
        (with_gpu(replace(H200, driver_cuda=12080)), r"CUDA 13\.0.*up to 12\.8; update the NVIDIA driver"),
        (with_gpu(replace(H200, sm="sm_80", name="NVIDIA A100")), r"sm_90, and NVIDIA A100 is sm_80.*pllm build tiny"),
    ],
)
def test_another_gpu_is_refused_before_anything_is_loaded(artifact_path: Path, machine: Machine, said: str) -> None:
    with pytest.raises(ArtifactMismatchError, match=said):
        Artifact.open(for_cuda(artifact_path), machine=machine)


def test_another_gpu_of_the_same_architecture_runs_and_is_told(artifact_path: Path) -> None:
    path = for_cuda(artifact_path)
    other = with_gpu(replace(H200, name="NVIDIA H100 80GB HBM3"))
    manifest = Artifact.open(path, machine=other).manifest
    notice = tuning_notice(manifest, other)
    assert notice is not None
    assert "measured on NVIDIA H200, and this is NVIDIA H100" in notice
    assert tuning_notice(manifest, with_gpu(H200)) is None


def test_a_gpu_artifact_without_a_gpu_is_damaged(artifact_path: Path) -> None:
    rewrite(artifact_path, lambda d: d["requires"].update({"device": "cuda"}))  # type: ignore[attr-defined]
    with pytest.raises(ArtifactDamagedError, match=r"requires\.gpu"):
        Artifact.read(artifact_path)


def test_inspect_shows_the_gpu_and_how_each_kernel_was_chosen(
    artifact_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    choices = [
        {"kernel": "decode_attention", "shape": [128, 2], "values": {"block_n": 64, "num_warps": 4}, "us": 12.34},
        {"kernel": "small_linear", "shape": [4096, 1024, 8], "values": {"block_n": 32}, "us": None},
    ]
    gpu_path = for_cuda(artifact_path)
    rewrite(gpu_path, lambda d: d["requires"]["gpu"].update({"kernels": choices}))  # type: ignore[attr-defined]
    assert main(["inspect", str(gpu_path)]) == 0
    out = capsys.readouterr().out
    for text in ("sm_90, a driver for CUDA 13.0", "128 x 2", "block_n 64, num_warps 4", "12.3", "as shipped"):
        assert text in out


def test_check_plans_with_the_gpus_memory(
    artifact_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = for_cuda(artifact_path, graphs=1 << 20)
    here = with_gpu(replace(H200, name="NVIDIA H100 80GB HBM3", free_memory=64 << 20))
    monkeypatch.setattr(Machine, "this", lambda device="cpu": here)
    arguments = Namespace(artifact=str(path), memory=None, max_num_seqs=None, max_model_len=None)
    assert check_cli.main(arguments) == 0
    shown = capsys.readouterr().out
    assert "sm_90" in shown
    assert "note: tuned and measured on NVIDIA H200" in shown
    assert "graphs" in shown
    assert f"{64 << 20:,}" in shown


def test_a_smaller_gpu_gets_a_smaller_pool_or_is_refused() -> None:
    ledger = MemoryLedger(weights=1 << 30, activations=64 << 20, runtime=32 << 20, graphs=16 << 20, kv_block=1 << 20)

    def plan(free: int) -> MemoryPlan:
        memory = setting_for("cuda", "auto")
        return MemoryPlan.solve(
            ledger, block_size=16, max_model_len=512, max_num_seqs=16, memory=memory, available=free
        )

    whole = plan(8 << 30)
    assert (whole.num_blocks, whole.notice) == (512, None)
    shrunk = plan(3 << 29)
    assert shrunk.num_blocks == (int((3 << 29) * 0.9) - ledger.fixed) >> 20 < 512
    assert shrunk.notice is not None
    with pytest.raises(DoesNotFitError, match=r"graphs 16\.0 MiB"):
        plan((1 << 30) + (130 << 20))
    assert setting_for("cpu", "auto") == "auto"
    assert setting_for("cuda", "4GiB") == "4GiB"

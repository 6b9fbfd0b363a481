"""The pipeline's frame: what is resolved and refused before work, what is skipped when fresh, and what is packed."""

import io
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import msgspec
import pytest
from rich.console import Console

from pllm.build import cli, pipeline
from pllm.build.pipeline import Build, Stage, build_artifact
from pllm.build.progress import Progress, StageProgress, format_seconds
from pllm.build.recipe import Recipe
from pllm.build.resolve import resolve
from pllm.cli import main
from pllm.runtime.artifact import Artifact
from pllm.runtime.errors import BuildError, CheckpointError, DoesNotFitError, RecipeError
from pllm.runtime.gpu import Gpu
from pllm.runtime.machine import Machine
from pllm.runtime.manifest import (
    CertificateSummary,
    Constant,
    DimRange,
    EngineDefaults,
    ModelInfo,
    ProgramInfo,
    Requires,
    TensorInfo,
)
from pllm.runtime.memory import MemoryLedger
from pllm.runtime.safetensors_file import TensorSpec

from .conftest import write_checkpoint

H200 = Gpu("NVIDIA H200", "sm_90", 13000, 140 << 30, 130 << 30)


def compile_nothing(build: Build, progress: StageProgress) -> None:
    """Stands for all stages between load and pack: true in everything but the programs."""
    staging, engine, here = build.staging, build.recipe.engine, Machine.this()
    for name in ("ops/ops.so", "programs/main/model.so", "golden.json", "measured/latency.json"):
        staging.path(name).write_bytes(b"[]")
    staging.path("tokenizer/tokenizer.json").write_bytes(b"{}")
    build.tokenizer = ("tokenizer/tokenizer.json",)
    build.weights = staging.write_weights(
        [TensorSpec("w", "BF16", (3, 5))], lambda name: build.checkpoint.tensor(name).view(dtype=_int16()).numpy()
    )
    build.operators = ("ops/ops.so",)
    build.programs = (
        ProgramInfo(
            name="main",
            file="programs/main/model.so",
            dims={"T": DimRange(min=1, max=8)},
            inputs=(TensorInfo(name="x", dtype="int64", shape=("T",)),),
            outputs=(),
            constants=(Constant(name="w", weight="w", shape=(3, 5)),),
        ),
    )
    build.requires = Requires(torch=here.torch, device="cpu", machine=here.architecture, isa=(), glibc=here.glibc)
    build.model = ModelInfo(
        architecture="X", vocab_size=300, context=build.facts.context, num_layers=2, num_kv_heads=1, head_dim=4,
        num_parameters=15, dtype="bfloat16", eos_token_ids=(2,),
    )  # fmt: skip
    build.memory = MemoryLedger(weights=30, activations=0, runtime=0, kv_block=build.kv.block_bytes)
    assert isinstance(engine.max_model_len, int)
    assert isinstance(engine.buckets, tuple)
    build.engine = EngineDefaults(
        max_model_len=engine.max_model_len, max_num_seqs=engine.max_num_seqs, memory=engine.memory, threads="auto",
        max_num_batched_tokens=engine.max_num_batched_tokens, buckets=engine.buckets, prefill_chunk=64,
        inter_token_target_ms=None,
    )  # fmt: skip
    build.certificate = CertificateSummary(
        reference="none",
        num_prompts=1,
        num_tokens=1,
        max_logit_error=0.0,
        bound=0.0,
        kl_divergence=0.0,
        skipped_share=0.0,
    )
    progress.say("compiled nothing at all")


def _int16() -> Any:
    import torch

    return torch.int16


@pytest.fixture
def stages(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Let the whole pipeline be the stage above; the list grows by one with each run of it."""
    runs: list[int] = []

    def counted(build: Build, progress: StageProgress) -> None:
        runs.append(1)
        compile_nothing(build, progress)

    fake = ModuleType("fake_stage")
    fake.run = counted  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "fake_stage", fake)
    monkeypatch.setattr(pipeline, "STAGES", (Stage("compile", "fake_stage:run"),))
    monkeypatch.setattr(build_artifact, "__kwdefaults__", {"force": False, "stages": pipeline.STAGES})
    return runs


def run(recipe: Recipe, target: Path, **options: Any) -> str:
    console = Console(file=io.StringIO(), width=200)
    build_artifact(recipe, target, Progress(console), **options)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def recipe_for(folder: Path, *overrides: str) -> Recipe:
    return Recipe.for_model(str(folder), overrides)


def test_a_build_makes_an_artifact_that_opens(checkpoint_path: Path, tmp_path: Path, stages: list[int]) -> None:
    said = run(recipe_for(checkpoint_path), tmp_path / "out")
    artifact = Artifact.open(tmp_path / "out")
    artifact.wait_verified()
    assert (tmp_path / "out/tokenizer/tokenizer.json").read_text() == "{}"
    assert msgspec.json.decode((tmp_path / "out/generation.json").read_bytes()) == {"eos_token_id": 2}
    lock = Recipe.load(tmp_path / "out/recipe.lock.toml")
    assert lock.engine.max_model_len == 1024
    assert lock.quantization.weights == "bf16"
    assert lock.engine.buckets == (1, 2, 4, 8, 16, 32)
    assert artifact.manifest.provenance.recipe == "model"
    for text in ("load", "compile", "pack", "compiled nothing at all", "context 1024 of 1024", "is built"):
        assert text in said
    assert str(tmp_path) not in "".join(
        file.read_text(errors="replace") for file in (tmp_path / "out").rglob("*") if file.is_file()
    )


def test_the_same_recipe_makes_the_same_bytes(checkpoint_path: Path, tmp_path: Path, stages: list[int]) -> None:
    for name in ("a", "b"):
        run(recipe_for(checkpoint_path), tmp_path / name)
    for file in (tmp_path / "a").rglob("*"):
        if file.is_file():
            assert file.read_bytes() == (tmp_path / "b" / file.relative_to(tmp_path / "a")).read_bytes()


def test_a_fresh_artifact_is_not_built_again_and_a_stale_one_is(
    checkpoint_path: Path, tmp_path: Path, stages: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "out"

    def built(*overrides: str, **options: Any) -> bool:
        before = len(stages)
        run(recipe_for(checkpoint_path, *overrides), target, **options)
        return len(stages) > before

    assert built()
    assert not built()
    assert built(force=True)
    assert built("engine.max_num_seqs=2")
    assert not built("engine.max_num_seqs=2")
    (checkpoint_path / "tokenizer.json").write_text('{"another": 1}')
    assert built("engine.max_num_seqs=2")
    (target / "golden.json").unlink()
    assert built("engine.max_num_seqs=2")
    monkeypatch.setattr(pipeline, "builder_fingerprint", lambda: "f" * 64)
    assert built("engine.max_num_seqs=2")


def test_what_cannot_fit_is_refused_before_any_stage(
    checkpoint_path: Path, tmp_path: Path, stages: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pipeline, "available_memory", lambda: 20_000 + 76_800)  # the latter for activations
    with pytest.raises(DoesNotFitError, match="largest max_model_len that fits is 304") as caught:
        run(recipe_for(checkpoint_path), tmp_path / "out")
    assert caught.value.exit_code == 2
    run(recipe_for(checkpoint_path, "engine.max_model_len=304"), tmp_path / "out")
    assert len(stages) == 1


def test_a_model_far_too_large_is_refused_in_no_time(tmp_path: Path, stages: list[int]) -> None:
    """From the header alone: the data is a hole in a sparse file."""
    folder = write_checkpoint(tmp_path / "huge")
    header = b'{"w":{"dtype":"BF16","shape":[1048576,1048576],"data_offsets":[0,2199023255552]}}'
    with (folder / "model.safetensors").open("wb") as file:
        file.write(len(header).to_bytes(8, "little") + header)
        file.truncate(8 + len(header) + (1 << 41))
    began = time.monotonic()
    with pytest.raises(DoesNotFitError, match=r"weights 2\.00 TiB"):
        run(recipe_for(folder), tmp_path / "out")
    assert time.monotonic() - began < 20
    assert not (tmp_path / "out").exists()


def quiet(_: str) -> None:
    pass


def test_what_cannot_be_is_refused(checkpoint_path: Path, tmp_path: Path, stages: list[int]) -> None:
    with pytest.raises(RecipeError, match="context of 1024 tokens"):
        run(recipe_for(checkpoint_path, "engine.max_model_len=2048"), tmp_path / "out")
    for number, (change, said) in enumerate(
        (
            ({"max_position_embeddings": "far"}, "no usable max_position_embeddings"),
            ({"head_dim": "wide"}, "no usable head_dim"),
            ({"head_dim": -64}, "no usable head_dim"),
            ({"head_dim": None, "num_attention_heads": 16}, r"more heads \(16\) than its hidden size"),
        )
    ):
        with pytest.raises(CheckpointError, match=said):
            run(recipe_for(write_checkpoint(tmp_path / str(number), **change)), tmp_path / "out")
    assert not stages


@pytest.mark.parametrize(
    ("gpu", "torch_cuda", "weights", "said"),
    [
        (None, "13.0", "auto", r"no NVIDIA driver.*set device\.kind = \"cpu\""),
        (H200, "", "auto", r"NVIDIA H200 \(sm_90\) is compiled by torch's CUDA build"),
        (replace(H200, sm="sm_75"), "13.0", "auto", r"the kernels need sm_80"),
        (H200, "13.0", "int8", r"quantization\.weights = \"int8\" is for a CPU.*float32, bf16"),
    ],
)
def test_cuda_is_refused_by_what_is_here(
    gpu: Gpu | None, torch_cuda: str, weights: str, said: str, checkpoint_path: Path, tmp_path: Path,
    stages: list[int], monkeypatch: Any,
) -> None:  # fmt: skip
    monkeypatch.setattr("pllm.build.resolve.find_gpu", lambda: gpu)
    monkeypatch.setattr("pllm.build.resolve.torch_cuda_version", lambda: torch_cuda)
    recipe = recipe_for(checkpoint_path, "device.kind=cuda", f"quantization.weights={weights}")
    with pytest.raises(BuildError, match=said):
        run(recipe, tmp_path / "out")
    assert not stages


def test_what_cuda_leaves_to_auto(checkpoint_path: Path, monkeypatch: Any) -> None:
    from pllm.build.checkpoint import Checkpoint

    monkeypatch.setattr("pllm.build.resolve.find_gpu", lambda: H200)
    monkeypatch.setattr("pllm.build.resolve.torch_cuda_version", lambda: "13.0")
    recipe = recipe_for(checkpoint_path, "device.kind=cuda", "quantization.weights=bf16", "engine.max_num_seqs=36")
    resolved = resolve(recipe, Checkpoint(checkpoint_path, label="x"), quiet)
    assert resolved.device.kind == "cuda"
    assert resolved.quantization.kv == "bf16"
    assert resolved.engine.buckets == (1, 2, 4, 8, 16, 24, 32, 36)


def test_auto_context_is_bounded(tmp_path: Path) -> None:
    from pllm.build.checkpoint import Checkpoint

    folder = write_checkpoint(tmp_path / "long", max_position_embeddings=131072)
    resolved = resolve(recipe_for(folder), Checkpoint(folder, label="x"), quiet)
    assert resolved.engine.max_model_len == 8192
    assert resolved.device.kind == "cpu"
    assert resolved.model.dtype == "bfloat16"


def test_a_stage_that_fails_leaves_no_artifact(
    checkpoint_path: Path, tmp_path: Path, stages: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(build: Build, progress: StageProgress) -> None:
        build.staging.path("half").write_bytes(b"x")
        raise BuildError("this model cannot be traced")

    monkeypatch.setattr(sys.modules["fake_stage"], "run", fails)
    with pytest.raises(BuildError, match="cannot be traced"):
        run(recipe_for(checkpoint_path), tmp_path / "out/tiny")
    assert [path.name for path in (tmp_path / "out").iterdir()] == [".tiny.lock"]


def test_the_command_builds_where_it_is_told(
    checkpoint_path: Path, tmp_path: Path, stages: list[int], monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(cli.signal, "signal", lambda *_: None)  # pytest keeps its own handlers
    assert main(["build", "model"]) == 0
    assert capsys.readouterr().out == "artifacts/model\n"
    Artifact.open(tmp_path / "artifacts/model").wait_verified()
    assert main(["build", str(checkpoint_path), "--output", "there", "--set", "engine.max_num_seqs=2"]) == 0
    assert Artifact.read(tmp_path / "there").manifest.engine.max_num_seqs == 2
    assert main(["build", "none.toml"]) == 2
    assert main(["build", "model", "--set", "engine.block_size=3"]) == 2
    captured = capsys.readouterr()
    assert captured.err.count("pllm: error: ") == 2
    assert "Traceback" not in captured.err


def test_init_writes_a_recipe_that_builds(
    checkpoint_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["init", "./model"]) == 0
    recipe = Recipe.load(tmp_path / "model.toml")
    assert recipe.source_directory() == tmp_path / "model"
    assert main(["init", "./model"]) == 2
    assert "model.toml exists" in capsys.readouterr().err
    for model in ("./nothing", "a/b/c", "/nothing"):
        assert main(["init", model, "--output", "-"]) == 2
        assert "is neither a directory nor a Hub id" in capsys.readouterr().err
    assert main(["init", "org/name", "--output", "-"]) == 0
    assert 'source = "org/name"' in capsys.readouterr().out


def test_two_builds_at_once_have_one_winner(checkpoint_path: Path, tmp_path: Path, stages: list[int]) -> None:
    recipe = recipe_for(checkpoint_path)
    with ThreadPoolExecutor(2) as pool:
        outputs = list(pool.map(lambda _: run(recipe, tmp_path / "out"), range(2)))
    assert len(stages) == 1
    assert sorted("is up to date" in output for output in outputs) == [False, True]
    Artifact.open(tmp_path / "out").wait_verified()


def test_a_terminated_build_cleans_up_after_itself(checkpoint_path: Path, tmp_path: Path) -> None:
    script = """
import sys, time, types
from pllm.build import pipeline
from pllm.cli import main
def run(build, progress):
    build.staging.path("half").write_bytes(b"x")
    print("running", flush=True)
    time.sleep(60)
fake = types.ModuleType("fake_stage")
fake.run = run
sys.modules["fake_stage"] = fake
pipeline.build_artifact.__kwdefaults__["stages"] = (pipeline.Stage("compile", "fake_stage:run"),)
sys.exit(main(["build", sys.argv[1], "--output", sys.argv[2]]))
"""
    target = tmp_path / "out/tiny"
    command = [sys.executable, "-c", script, str(checkpoint_path), str(target)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "running\n"
        assert len(list(target.parent.glob(".tiny.partial-*/half"))) == 1
        process.terminate()
        assert process.wait(timeout=60) == 128 + signal.SIGTERM
    assert [path.name for path in target.parent.iterdir()] == [".tiny.lock"]


@pytest.mark.parametrize("terminal", [True, False])
def test_progress_shows_each_stage_its_decisions_and_the_total(terminal: bool) -> None:
    console = Console(file=io.StringIO(), width=120, force_terminal=terminal)
    progress = Progress(console)
    with progress.stage("compile") as running:
        running.show("[1/2]")
        running.say("one program [for all batches]")
    with pytest.raises(BuildError), progress.stage("certify"):
        raise BuildError("x")
    progress.finish("done")
    assert isinstance(console.file, io.StringIO)
    shown = console.file.getvalue()
    assert "one program [for all batches]" in shown
    assert "✓" in shown
    assert "done" in shown
    assert shown.count("✓") == 1  # a stage that failed is not ticked off
    assert ("\x1b[" in shown) is terminal


def test_times_are_readable() -> None:
    assert [format_seconds(seconds) for seconds in (0.04, 12.34, 60, 725)] == [
        "0.0 s", "12.3 s", "1 min 00 s", "12 min 05 s",
    ]  # fmt: skip

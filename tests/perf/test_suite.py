"""What pllm does, piece by piece, for pytest-benchmark: ``pytest tests/perf --benchmark-only``.

``make test`` runs each once and times nothing, so that none of them rots. Times are asserted nowhere.
"""

import time
from pathlib import Path

import numpy as np
import pytest
import torch

from pllm.build.graph_record import record
from pllm.build.passes import apply_cuda_passes, apply_passes
from pllm.build.passes.step_shape import StepShape
from pllm.build.recipe import Recipe
from pllm.kernels.cpu.library import CpuLibrary
from pllm.runtime.block_pool import BlockPool
from pllm.runtime.certificate import step_of
from pllm.runtime.detokenizer import SequenceText
from pllm.runtime.engine import Engine
from pllm.runtime.engine_core import EngineCore
from pllm.runtime.gate.benchmarks import CALIBRATION
from pllm.runtime.gate.calibration import Calibration
from pllm.runtime.sampling import Sampler
from pllm.runtime.sampling_params import SamplingParams
from pllm.runtime.scheduler import Scheduler
from pllm.runtime.sequence import Request
from pllm.runtime.step import SampledToken, SampleSpec, SchedulerOutput, StepResult
from pllm.runtime.tokenizer import Tokenizer
from tests.build.graphs import checkpoint_of, traced_of
from tests.engine.fake_model import config

ROOT = Path(__file__).parents[2]
VOCABULARY = 32_000


def test_calibration(benchmark) -> None:
    """The machine's own speed, beside everything else."""
    assert CALIBRATION == "test_calibration"
    assert benchmark(Calibration().seconds) > 0


def test_build_recipe(benchmark) -> None:
    assert benchmark(Recipe.load, ROOT / "recipes" / "quickstart.toml", []).name == "quickstart"


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_build_passes(benchmark, device: str, tmp_path: Path) -> None:
    checkpoint = checkpoint_of("qwen3", tmp_path)

    def run(traced) -> int:
        if device == "cpu":
            apply_passes(traced, torch.float32)
        else:
            apply_cuda_passes(traced, StepShape(8, 8, decodes=True))
        return sum(record(traced.graph, ()).nodes.values())

    assert benchmark.pedantic(run, setup=lambda: ((traced_of(checkpoint)[0],), {}), rounds=3) > 10


def test_block_pool(benchmark) -> None:
    def run() -> int:
        pool = BlockPool(256, 16)
        tables = [[] for _ in range(16)]
        for position in range(128):
            for table in tables:
                pool.extend(table, position, position + 1)
        for table in tables:
            pool.free(table)
        return pool.num_free

    assert benchmark(run) == 256


class _SaysOne:
    """A model that costs nothing."""

    def execute(self, out: SchedulerOutput) -> StepResult:
        return StepResult(tuple(SampledToken(spec.seq_id, 1) for row in out.rows for spec in row.samples))


def test_scheduler_steps(benchmark) -> None:
    """Decisions over eight sequences of 32 tokens, and what comes of them; the model is left out."""
    engine = Engine(Scheduler(config(max_num_seqs=8)), _SaysOne())
    params = SamplingParams(temperature=0, max_tokens=32, ignore_eos=True)

    def run() -> int:
        for i in range(8):
            engine.submit(Request(str(i), (i, i + 1), params, (), time.monotonic()))
        steps = 0
        while engine.has_unfinished:
            engine.step()
            steps += 1
        return steps

    assert benchmark(run) >= 32


def test_detokenizer(benchmark) -> None:
    tokenizer = Tokenizer.open(ROOT / "recipes" / "quickstart")
    token_ids = tokenizer.encode("Once upon a time there was a garden, and 今天天气很好. " * 8)

    def run() -> int:
        text = SequenceText(tokenizer, SamplingParams(), continues=False)
        for token_id in token_ids:
            text.feed([token_id])
        return len(token_ids)

    assert benchmark(run) == len(token_ids)


@pytest.mark.parametrize("temperature", [0.0, 0.8])
@pytest.mark.parametrize("ops", ["numpy", "native"])
def test_sampler(benchmark, quickstart: Path, ops: str, temperature: float) -> None:
    logits = np.random.default_rng(0).standard_normal((8, VOCABULARY), np.float32) * 3
    params = SamplingParams(temperature=temperature, top_p=0.9, top_k=50)
    specs = [(SampleSpec(i, params, (1,), (), seed=i),) for i in range(8)]
    sampler = Sampler(_library(quickstart) if ops == "native" else None)
    assert len(benchmark(sampler.sample, logits, specs)) == 8


@pytest.mark.parametrize("rows", [1, 8, 128])
def test_linear_kernel(benchmark, quickstart: Path, rows: int) -> None:
    library, rng = _library(quickstart), np.random.default_rng(0)
    x = rng.standard_normal((rows, 256), np.float32)
    weight = rng.standard_normal((1280 // 32, 256, 32), np.float32)
    assert benchmark(library.linear, x, weight, None, 1280).shape == (rows, 1280)


@pytest.mark.parametrize(("sequences", "tokens"), [(1, 1), (8, 8), (1, 128)])
def test_model_step(benchmark, core: EngineCore, sequences: int, tokens: int) -> None:
    """A step of decoding, or of reading a prompt: staged, run, sampled."""
    out = step_of(core.engine.config, sequences, tokens, 128)
    assert len(benchmark(core.model_runner.execute, out).tokens) == sequences


@pytest.mark.parametrize("batch", [1, 8])
def test_generate(benchmark, core: EngineCore, batch: int) -> None:
    """Whole requests through the engine: 32 tokens in, 16 out."""

    def run() -> int:
        params = SamplingParams(temperature=0.0, max_tokens=16, ignore_eos=True)
        for i in range(batch):
            core.engine.submit(Request(str(i), tuple(range(i, i + 32)), params, (), time.monotonic()))
        made = 0
        while core.engine.has_unfinished:
            made += sum(len(delta.token_ids) for delta in core.engine.step())
        return made

    assert benchmark(run) == 16 * batch


def _library(artifact: Path) -> CpuLibrary:
    library = CpuLibrary.open(artifact / "ops" / "libpllm_ops.so")
    library.set_num_threads(1)
    return library

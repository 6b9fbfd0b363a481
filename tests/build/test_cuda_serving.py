"""Serving on CUDA but for CUDA: rewritten graphs, static buffers, graphs by bucket, the CPU one step behind.

The operators are their specifications, the tensors are a CPU's, and a replay runs the captured work anew; all else is
what serves on a GPU. The tokens are transformers'.
"""

import time
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
import transformers
from torch import Tensor

from pllm.build.passes import apply_cuda_passes
from pllm.build.passes.step_shape import StepShape
from pllm.kernels import reference
from pllm.runtime.cuda.pipelined_runner import PipelinedRunner
from pllm.runtime.cuda.torch_step_device import Forward, TorchStepDevice
from pllm.runtime.engine import Engine
from pllm.runtime.sampling_params import SamplingParams
from pllm.runtime.scheduler import Scheduler, SchedulerConfig
from pllm.runtime.sequence import Request

from .graphs import BLOCK_SIZE, VOCABULARY, PagedModel, checkpoint_of, traced_of

MOST = 8


class Rerun:
    """A GraphDevice: a graph is the bucket that ran while it was captured, and a replay runs it."""

    def __init__(self) -> None:
        self.device: Watched | None = None
        self.captured: list[int] = []
        self.replayed: list[int] = []

    def begin_capture(self) -> None:
        pass

    def end_capture(self) -> object:
        assert self.device is not None
        self.captured.append(self.device.last_bucket)
        return self.captured[-1]

    def replay(self, graph: object) -> None:
        assert self.device is not None and isinstance(graph, int)
        self.replayed.append(graph)
        self.device.run(graph)

    def synchronize(self) -> None:
        pass


class Watched(TorchStepDevice):
    last_bucket = 0

    def run(self, bucket: int) -> None:
        self.last_bucket = bucket
        super().run(bucket)


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> tuple[Engine, Rerun, Path, Tensor]:
    folder = tmp_path_factory.mktemp("qwen3")
    checkpoint = checkpoint_of("qwen3", folder)
    kv = torch.full((64, 2, 2, 2, BLOCK_SIZE, 16), 7.0)

    def program(step: StepShape) -> Forward:
        traced, info = traced_of(checkpoint)
        apply_cuda_passes(traced, step)
        model = PagedModel(traced, info, checkpoint)

        def forward(inputs: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
            logits = model.forward(inputs)
            sampler = (inputs[name] for name in ("temperature", "top_k", "top_p", "min_p", "seeds", "draws"))
            return logits, reference.sample_tokens(logits, *sampler)

        return forward

    config = SchedulerConfig(
        max_num_seqs=MOST, max_num_batched_tokens=64, max_model_len=128, block_size=BLOCK_SIZE, num_blocks=64,
        prefill_chunk=32, max_logit_rows=64, vocab_size=VOCABULARY, lookahead_tokens=1,
    )  # fmt: skip
    device = Watched(
        config, torch.device("cpu"), kv,
        decode=program(StepShape(MOST, MOST, decodes=True)), mixed=program(StepShape(64, MOST, decodes=False)),
    )  # fmt: skip
    graphs = Rerun()
    graphs.device = device
    device.capture(graphs, (1, 2, 4, 8))
    assert bool((kv == 7.0).all()), "rows of no sequence write nothing"
    return Engine(Scheduler(config), PipelinedRunner(device, config)), graphs, folder, kv


def serve(engine: Engine, requests: Mapping[str, tuple[list[int], SamplingParams]]) -> dict[str, list[int]]:
    said: dict[str, list[int]] = {name: [] for name in requests}
    for name, (prompt, params) in requests.items():
        engine.submit(Request(name, tuple(prompt), params, (), time.monotonic()))
    while engine.has_unfinished:
        for delta in engine.step():
            assert delta.error is None
            said[delta.request_id] += delta.token_ids
    return said


def test_the_tokens_are_those_of_transformers(served: tuple[Engine, Rerun, Path, Tensor]) -> None:
    engine, graphs, folder, _ = served
    assert graphs.captured == [8, 4, 2, 1]
    prompts = {str(i): [(7 * i + 3 * j) % VOCABULARY for j in range(3 + 9 * i)] for i in range(5)}
    params = {name: SamplingParams(temperature=0, max_tokens=6 + 5 * i) for i, name in enumerate(prompts)}
    said = serve(engine, {name: (prompts[name], params[name]) for name in prompts})
    assert set(graphs.replayed) == {1, 2, 4, 8}  # as sequences end the bucket shrinks
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    for name, prompt in prompts.items():
        ids, count = torch.tensor([prompt]), params[name].max_tokens
        with torch.no_grad():
            for _ in range(count or 0):
                ids = torch.cat([ids, model(ids).logits[:, -1].argmax(-1, keepdim=True)], dim=1)
        assert said[name] == ids[0, len(prompt) :].tolist()


def test_what_is_drawn_depends_on_no_neighbour(served: tuple[Engine, Rerun, Path, Tensor]) -> None:
    engine, *_ = served
    requests = {
        str(i): ([i + 1, 50 + i, 9], SamplingParams(temperature=1.0, top_p=0.9, top_k=40, seed=i, max_tokens=12))
        for i in range(4)
    } | {"on the CPU": ([4, 4], SamplingParams(temperature=0.8, seed=3, max_tokens=12, presence_penalty=0.5))}
    together = serve(engine, requests)
    for name, request in requests.items():
        assert serve(engine, {name: request})[name] == together[name]
    assert len({tuple(tokens) for tokens in together.values()}) == 5

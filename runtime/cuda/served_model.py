"""The served model: an artifact's programs and weights on a device, the KV pool, and the graphs over it.

    load_weights   weights, copied to the device; programs, opened with them
    make_pool      the pool, the history of penalised sequences, the buffers of steps
    capture        every program runs once; then every bucket is captured, the largest first
    runner         what the engine drives

It is a MeasuredDevice (`device_plan`): a build measures it to find out what each of these takes, and whoever opens an
artifact tries its plan on it.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pllm.runtime.artifact import MappedWeights
from pllm.runtime.cuda.accelerator import Accelerator, filling
from pllm.runtime.cuda.graphs import BucketGraphs, CaptureTime
from pllm.runtime.cuda.pipelined_runner import Draw, PipelinedRunner, draws_on_device
from pllm.runtime.cuda.program import TorchProgram
from pllm.runtime.cuda.program_set import ProgramSet
from pllm.runtime.cuda.torch_step_device import TorchStepDevice
from pllm.runtime.cuda.weights import load_weights
from pllm.runtime.inputs import InputBuffers
from pllm.runtime.largest_steps import largest_steps
from pllm.runtime.manifest import KvInfo, ProgramInfo
from pllm.runtime.safetensors_file import SafetensorsFile
from pllm.runtime.scheduler_config import SchedulerConfig
from pllm.runtime.step import ScheduledRow, SchedulerOutput

__all__ = ["ServedModel", "ServedSpec", "buckets_for"]


@dataclass(frozen=True, slots=True)
class ServedSpec:
    """What is opened. Files are named within `directory`; `config.num_blocks` is decided later."""

    directory: Path
    programs: tuple[ProgramInfo, ...]
    weights: tuple[str, ...]
    kv: KvInfo
    buckets: tuple[int, ...]
    config: SchedulerConfig


def buckets_for(built: Sequence[int], max_num_seqs: int) -> tuple[int, ...]:
    """The buckets that so many sequences need: those below, and one that holds them all."""
    return tuple(sorted({min(bucket, max_num_seqs) for bucket in built} | {max_num_seqs}))


class ServedModel:
    """Everything on the device. One thread uses it."""

    def __init__(
        self, spec: ServedSpec, accelerator: Accelerator, *, captured: Callable[[CaptureTime], None] | None = None
    ) -> None:
        self.spec = spec
        self.accelerator = accelerator
        self._captured = captured
        self._weights: dict[str, Tensor] = {}
        self._programs: ProgramSet[TorchProgram] | None = None
        self._device: TorchStepDevice | None = None
        self._inputs = InputBuffers(spec.config)
        self.graphs: BucketGraphs[object] | None = None
        """Those of all buckets, with the milliseconds that each took to open."""

    def free(self) -> int:
        return self.accelerator.free()

    def held(self) -> int:
        return self.accelerator.held()

    def load_weights(self) -> None:
        """Raises ArtifactError's kinds for programs and weights that do not agree, or cannot be loaded here."""
        spec, device = self.spec, self.accelerator.device
        mapped = MappedWeights([SafetensorsFile(spec.directory / name) for name in spec.weights])
        try:
            with filling():
                self._weights = load_weights(mapped.tensors, device)
        finally:
            self.accelerator.synchronize()
            mapped.close()
        self._programs = ProgramSet.of(
            {
                info.name: (info, TorchProgram.open(info, spec.directory / info.file, self._weights, device))
                for info in spec.programs
            }
        )

    def make_pool(self, num_blocks: int) -> None:
        kv, config = self.spec.kv, replace(self.spec.config, num_blocks=num_blocks)
        shape = (num_blocks, kv.num_layers, 2, kv.num_kv_heads, kv.block_size, kv.head_dim)
        with filling():
            pool = torch.zeros(shape, dtype=getattr(torch, kv.dtype), device=self.accelerator.device)
            self._device = TorchStepDevice(
                config, self.accelerator.device, pool, decode=self._decode, mixed=self._mixed
            )

    def drop_pool(self) -> None:
        self.drop_graphs()
        self._device = None
        self.accelerator.release()

    def run_largest_steps(self) -> None:
        with filling():
            for out in largest_steps(self.step_device.config):
                self.launch(out)
            self.accelerator.synchronize()

    def launch(self, out: SchedulerOutput) -> None:
        """One step by the mixed program, drawn on the device where that is how its rows draw. Waits for it."""
        step = self._inputs.stage(out)
        draws = [
            Draw(samples[0], len(samples[0].output_token_ids)) if draws_on_device(samples) else None
            for samples in step.samples
        ]
        self.step_device.mixed(step, draws).tokens()

    def capture(self) -> None:
        with filling():
            self.launch(SchedulerOutput(next(largest_steps(self.step_device.config)).rows[-1:]))
            graphs = self.accelerator.graphs()
            self.graphs = self.step_device.capture(graphs, self.spec.buckets, self._captured)
            self.accelerator.synchronize()

    def drop_graphs(self) -> None:
        self.graphs = None
        if self._device is not None:
            self._device.drop_graphs()
        self.accelerator.release()

    @property
    def step_device(self) -> TorchStepDevice:
        assert self._device is not None, "make_pool comes first"
        return self._device

    def runner(self) -> PipelinedRunner:
        return PipelinedRunner(self.step_device, self.step_device.config)

    def close(self) -> None:
        """Give the device's memory back. No step may run any more."""
        self.drop_pool()
        self._programs, self._weights = None, {}
        self.accelerator.release()

    def logits(self, token_ids: Sequence[int]) -> NDArray[np.float32]:
        """Of the mixed program after each token of a sequence, [T, V], as many tokens a step as have logits in one."""
        config, count = self.step_device.config, len(token_ids)
        found, most = [], min(config.max_logit_rows, config.max_num_batched_tokens)
        for start in range(0, count, most):
            new = token_ids[start : start + most]
            table = range(-(-(start + len(new)) // config.block_size))
            row = ScheduledRow(0, start, new, table, samples=(), prompt_logprobs=0, prompt_targets=[0] * len(new))
            step = self._inputs.stage(SchedulerOutput((row,)))
            found.append(self.step_device.mixed(step, []).logits())
        return np.concatenate(found)

    def _decode(self, inputs: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        assert self._programs is not None, "load_weights comes first"
        logits, tokens = self._programs.for_rows(len(inputs["input_ids"])).run(inputs)
        return logits, tokens

    def _mixed(self, inputs: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        assert self._programs is not None, "load_weights comes first"
        logits, tokens = self._programs.mixed.run(inputs)
        return logits, tokens

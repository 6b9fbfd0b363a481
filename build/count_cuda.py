"""What a step on CUDA launches, copies and waits for, counted without a GPU.

``python -P -m pllm.build.count_cuda CHECKPOINT`` writes one JSON object on standard output. The graphs are those of the
checkpoint's model, rewritten for CUDA. The steps are those of the pipelined runner over a CPU's tensors, where a
replayed graph does nothing: so what is counted stands between two replays.
"""

import sys
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from pllm.build.checkpoint import Checkpoint
from pllm.build.export import paged_attention, trace
from pllm.build.graph_record import record
from pllm.build.model_source import load_config, skeleton
from pllm.build.passes import apply_cuda_passes
from pllm.build.passes.step_shape import SMALL_ROWS, StepShape
from pllm.build.resolve import ModelFacts
from pllm.runtime.cuda.pipelined_runner import DecodeRow, Draw, MixedLaunch, PipelinedRunner
from pllm.runtime.cuda.torch_step_device import TorchStepDevice
from pllm.runtime.engine import Engine
from pllm.runtime.errors import PllmError
from pllm.runtime.inputs import StagedStep
from pllm.runtime.manifest import KvInfo
from pllm.runtime.sampling_params import SamplingParams
from pllm.runtime.scheduler import Scheduler
from pllm.runtime.scheduler_config import SchedulerConfig
from pllm.runtime.sequence import Request

__all__ = ["graph_counts", "step_counts"]

_SHAPES = {
    f"decode of up to {SMALL_ROWS} rows": StepShape(max_rows=SMALL_ROWS, max_sequences=SMALL_ROWS, decodes=True),
    "decode of up to 256 rows": StepShape(max_rows=256, max_sequences=256, decodes=True),
    "mixed steps": StepShape(max_rows=2048, max_sequences=256, decodes=False),
}
_BLOCK = 16
_VOCABULARY = 64
_BATCHES = (1, 8)


def graph_counts(checkpoint: Checkpoint) -> dict[str, int]:
    """Of each program: nodes of its graph, and how many of them are operators of ours and products."""
    facts = ModelFacts.of(checkpoint.config, checkpoint.label)
    kv = KvInfo(
        dtype="bfloat16",
        num_layers=facts.num_layers,
        num_kv_heads=facts.num_kv_heads,
        block_size=_BLOCK,
        head_dim=facts.head_dim,
    )
    found = {}
    for name, step in _SHAPES.items():
        traced = trace(skeleton(load_config(checkpoint), paged_attention, torch.bfloat16), kv)
        apply_cuda_passes(traced, step)
        nodes = record(traced.graph, ()).nodes
        found[f"graph nodes, {name}"] = sum(nodes.values())
        ours = {node: count for node, count in nodes.items() if node.startswith(("pllm.", "aten.linear"))}
        found |= {f"kernels a run, {name}: {node.split('.')[1]}": count for node, count in ours.items()}
    return found


def step_counts() -> dict[str, int | str]:
    """Of steady decoding: launches, waits and copies, what torch does beside the graphs, and in which order."""
    found: dict[str, int | str] = {}
    for num_seqs in _BATCHES:
        where = f"{_BLOCK} steps of {num_seqs} sequence{'s' if num_seqs > 1 else ''}"
        device = _Watched(_config())
        engine = Engine(Scheduler(device.config), PipelinedRunner(device, device.config))
        for i in range(num_seqs):
            params = SamplingParams(temperature=0.0, max_tokens=4 * _BLOCK, ignore_eos=True)
            engine.submit(Request(str(i), (1, 2, 3), params, (), time.monotonic()))
        for _ in range(_BLOCK):
            engine.step()
        device.calls.clear()
        with _Dispatched() as dispatched:
            for _ in range(_BLOCK):
                engine.step()
        calls = Counter(device.calls)
        for name in ("decode", "mixed", "replay", "wait", "copy of KV blocks"):
            found[f"{name}, {where}"] = calls[name]
        found[f"operators of torch beside the graphs, {where}"] = sum(dispatched.names.values())
        found[f"copies by torch, {where}"] = sum(dispatched.names[name] for name in _COPIES)
        found[f"order, {where}"] = " ".join(device.calls[: len(device.calls) // _BLOCK])
    return found


_COPIES = ("aten.copy_.default", "aten.clone.default", "aten._to_copy.default")


def _config() -> SchedulerConfig:
    return SchedulerConfig(
        max_num_seqs=8,
        max_num_batched_tokens=64,
        max_model_len=128,
        block_size=_BLOCK,
        num_blocks=64,
        prefill_chunk=64,
        max_logit_rows=64,
        vocab_size=_VOCABULARY,
        enable_prefix_caching=False,
        lookahead_tokens=1,
    )


class _Dispatched(TorchDispatchMode):
    """Every operator of torch that runs while the mode is entered."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.names: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names[str(func)] += 1
        return func(*args, **(kwargs or {}))


class _Graphs:
    """A GraphDevice that records nothing and replays nothing, and says when."""

    def __init__(self, calls: list[str]) -> None:
        self._calls = calls

    def begin_capture(self) -> None:
        """Nothing is recorded."""

    def end_capture(self) -> object:
        return None

    def replay(self, _: object) -> None:
        self._calls.append("replay")

    def synchronize(self) -> None:
        """Nothing is under way."""


class _Waited:
    """A launch that says when it is waited for."""

    def __init__(self, launch: MixedLaunch, calls: list[str]) -> None:
        self._launch = launch
        self._calls = calls

    def tokens(self) -> list[int]:
        self._calls.append("wait")
        return self._launch.tokens()

    def logits(self) -> Any:
        self._calls.append("wait")
        return self._launch.logits()


class _Watched(TorchStepDevice):
    """The device over a CPU's tensors; ``calls`` is who asked for what, in order."""

    def __init__(self, config: SchedulerConfig) -> None:
        kv = torch.zeros(config.num_blocks, 1, 2, 1, _BLOCK, 8)
        super().__init__(config, torch.device("cpu"), kv, decode=_forward, mixed=_forward)
        self.config = config
        self.calls: list[str] = []
        self.capture(_Graphs(self.calls), (1, 2, 4, 8))

    def decode(self, rows: Sequence[DecodeRow]) -> Any:
        self.calls.append("decode")
        return _Waited(super().decode(rows), self.calls)

    def mixed(self, step: StagedStep, draws: Sequence[Draw | None]) -> Any:
        self.calls.append("mixed")
        return _Waited(super().mixed(step, draws), self.calls)

    def copy_blocks(self, pairs: Sequence[tuple[int, int]]) -> None:
        self.calls.append("copy of KV blocks")
        super().copy_blocks(pairs)


def _forward(inputs: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
    rows = len(inputs["logits_index"])
    return torch.zeros(rows, _VOCABULARY), torch.ones(rows, dtype=torch.int64)


def _main() -> int:
    try:
        found = graph_counts(Checkpoint(Path(sys.argv[1]), label="quickstart")) | step_counts()
    except PllmError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    print(msgspec.json.format(msgspec.json.encode(found), indent=1).decode())
    return 0


if __name__ == "__main__":
    sys.exit(_main())

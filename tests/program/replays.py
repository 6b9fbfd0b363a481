"""Graphs beside the eager program, on whatever device the engine has."""

import torch

from pllm.runtime.cuda.pipelined_runner import DecodeRow, Draw
from pllm.runtime.engine_core import EngineCore
from pllm.runtime.sampling_params import SamplingParams
from pllm.runtime.step import SampleSpec


def replays_equal_eager_runs(core: EngineCore) -> None:
    """To the bit, in every bucket: the keys and values that they write, and the tokens that they draw."""
    device = core.model_runner.device  # type: ignore[attr-defined]  # a PipelinedRunner's
    sampled = SamplingParams(temperature=0.8, top_p=0.9, seed=3)
    for bucket in (1, 2, 4):
        rows = [
            DecodeRow(5 + i, [i], Draw(SampleSpec(i, sampled, (1, 2), (), seed=i), 0), token_id=9 + i, place=-1)
            for i in range(bucket)
        ]
        device.replay(bucket, rows)
        tokens, pool = device.drawn(bucket).clone(), device.pool.clone()
        device.drawn(bucket).fill_(-7)
        device.run(bucket)
        assert torch.equal(device.drawn(bucket), tokens) and bool((tokens >= 0).all())
        assert torch.equal(device.pool, pool)

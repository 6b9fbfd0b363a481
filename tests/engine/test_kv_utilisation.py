"""How much of the KV memory that sequences hold is filled: what is allocated as tokens come, a block at a time, wastes
its last block's empty slots and nothing else.
"""

import random
import time

import pytest

from pllm.runtime.sampling_params import SamplingParams
from pllm.runtime.scheduler import Scheduler
from pllm.runtime.scheduler_config import SchedulerConfig
from pllm.runtime.sequence import Request
from pllm.runtime.step import SampledToken, SchedulerOutput, StepResult

VOCAB = 151936


def mixed_load() -> list[tuple[list[int], int]]:
    """The mixed workload of `pllm bench`: 32 requests, prompts of 16 to 256 tokens, answers of 8 to 64."""
    drawn = random.Random(0)
    shapes = [(drawn.randint(16, 256), drawn.randint(8, 64)) for _ in range(32)]
    return [([drawn.randrange(300, 4000) for _ in range(prompt)], answer) for prompt, answer in shapes]


def answer(out: SchedulerOutput) -> StepResult:
    """Any token will do: how many there are is settled by max_tokens."""
    specs = [spec for row in out.rows for spec in row.samples]
    return StepResult(tuple(SampledToken(spec.seq_id, 300 + len(spec.output_token_ids)) for spec in specs))


def utilisation(block_size: int, prefill_chunk: int) -> float:
    """Tokens held over slots allocated, by the engine's own gauges: the mean over its steps, sampled after each."""
    config = SchedulerConfig(
        max_num_seqs=16,
        max_num_batched_tokens=512,
        max_model_len=2048,
        block_size=block_size,
        num_blocks=16 * 2048 // block_size,
        prefill_chunk=prefill_chunk,
        max_logit_rows=64,
        vocab_size=VOCAB,
    )
    scheduler = Scheduler(config)
    for number, (prompt, length) in enumerate(mixed_load()):
        params = SamplingParams(temperature=0, max_tokens=length, ignore_eos=True)
        scheduler.add(Request(str(number), tuple(prompt), params, (), time.monotonic()))
    shares = []
    while scheduler.has_unfinished:
        out = scheduler.schedule()
        for row in out.rows:  # no block ahead of its tokens
            assert len(row.block_table) == -(-(row.start + len(row.token_ids)) // block_size), (
                "no block ahead of tokens"
            )
        scheduler.update(out, answer(out))
        stats = scheduler.stats()
        if stats.kv_blocks_used:
            shares.append(stats.kv_tokens_held / (stats.kv_blocks_used * block_size))
    assert scheduler.stats().num_preemptions == 0
    return sum(shares) / len(shares)


@pytest.mark.parametrize("prefill_chunk", [512, 64])
def test_a_mixed_load_fills_what_it_holds(prefill_chunk: int) -> None:
    assert utilisation(16, prefill_chunk) >= 0.95


def test_only_last_blocks_are_wasted() -> None:
    """Half a block a sequence of about 150 tokens: the larger the blocks, the more."""
    shares = [utilisation(size, 512) for size in (16, 32, 64)]
    assert shares == sorted(shares, reverse=True)
    for size, share in zip((16, 32, 64), shares, strict=True):
        assert 1 - share < size / 150

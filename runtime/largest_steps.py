"""The steps that take the most memory: what a plan must leave room for."""

from collections.abc import Iterator

from pllm.runtime.sampling_params import SamplingParams
from pllm.runtime.scheduler_config import SchedulerConfig
from pllm.runtime.step import SampleSpec, ScheduledRow, SchedulerOutput

__all__ = ["largest_steps"]


def largest_steps(config: SchedulerConfig) -> Iterator[SchedulerOutput]:
    """The steps that take the most memory: as many sequences and tokens as may be, every one sampled from with all that
    sampling may want; and again with as many rows of logits as may be."""
    sequences, tokens, most = config.max_num_seqs, config.max_num_batched_tokens, config.max_model_len
    params = SamplingParams(temperature=1.0, top_p=0.9, frequency_penalty=0.1, logprobs=20)

    def row(seq: int, length: int, *, scored: bool = False) -> ScheduledRow:
        blocks = -(-length // config.block_size)
        return ScheduledRow(
            seq_id=seq,
            start=0,
            token_ids=[0] * length,
            block_table=[(seq * blocks + i) % config.num_blocks for i in range(blocks)],
            samples=() if scored else (SampleSpec(seq, params, (0,), (), seed=0),),
            prompt_logprobs=20 if scored else None,
            prompt_targets=[0] * length if scored else (),
        )

    yield SchedulerOutput(tuple(row(i, length) for i, length in enumerate(_lengths(sequences, tokens, most))))
    others = sequences - 1
    scored = min(config.max_logit_rows - others, tokens - others, most)
    rest = _lengths(others, tokens - scored, most)
    yield SchedulerOutput((row(0, scored, scored=True), *(row(1 + i, length) for i, length in enumerate(rest))))


def _lengths(sequences: int, tokens: int, most: int) -> list[int]:
    """Tokens shared out among sequences, from one to ``most`` to each, the first ones as long as may be."""
    lengths: list[int] = []
    for left in range(sequences - 1, -1, -1):
        lengths.append(min(most, tokens - sum(lengths) - left))
    return lengths

"""Staging: a step's rows, laid one after another, as the arrays that a program takes.

rows            A: 3 new tokens after 5        B: 1 new token after 17
input_ids       a5  a6  a7  b17                int64 [T]
positions       5   6   7   17                 int64 [T]
query_start     0   3   4                      int32 [B + 1]
context_len     8   18                         int32 [B]
block_table     blocks of A, 0 ...; of B       int32 [B, W], W blocks of the longest
logits_index    2   3                          int64 [R], the positions whose logits are wanted
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pllm.runtime.scheduler_config import SchedulerConfig
from pllm.runtime.step import SampleSpec, ScheduledRow, SchedulerOutput

__all__ = ["InputBuffers", "StagedStep"]


@dataclass(frozen=True, slots=True)
class StagedStep:
    """A step's arrays, valid until the next is staged, and what the rows of its logits are for."""

    arrays: dict[str, NDArray[Any]]
    sample_rows: list[int]
    samples: list[tuple[SampleSpec, ...]]
    """As long as `sample_rows`: what is drawn from each."""
    prompt_rows: list[tuple[ScheduledRow, int]]
    """Rows with prompt_logprobs, and the first row of their logits; one for each of their prompt_targets."""
    num_logit_rows: int
    """0 where nobody needs logits; the arrays then ask for one row, since a program gives no fewer."""


class InputBuffers:
    """Buffers for the largest step, made once."""

    def __init__(self, config: SchedulerConfig) -> None:
        tokens, sequences = config.max_num_batched_tokens, config.max_num_seqs
        width = -(-config.max_model_len // config.block_size)
        self._input_ids = np.zeros(tokens, np.int64)
        self._positions = np.zeros(tokens, np.int64)
        self._query_start = np.zeros(sequences + 1, np.int32)
        self._context_len = np.zeros(sequences, np.int32)
        self._block_table = np.zeros(sequences * width, np.int32)
        self._logits_index = np.zeros(config.max_logit_rows, np.int64)
        self._counting = np.arange(max(config.max_model_len, tokens), dtype=np.int64)

    def stage(self, out: SchedulerOutput) -> StagedStep:
        """Lay out the step, which must have rows and keep the limits that the buffers were made for."""
        rows = out.rows
        count, width = len(rows), max(len(row.block_table) for row in rows)
        table = self._block_table[: count * width].reshape(count, width)
        table.fill(0)
        index = self._logits_index
        sample_rows: list[int] = []
        samples: list[tuple[SampleSpec, ...]] = []
        prompt_rows: list[tuple[ScheduledRow, int]] = []
        end = logits = 0
        for i, row in enumerate(rows):
            begin, new = end, len(row.token_ids)
            end, context = begin + new, row.start + new
            self._input_ids[begin:end] = row.token_ids
            self._positions[begin:end] = self._counting[row.start : context]
            self._query_start[i + 1] = end
            self._context_len[i] = context
            table[i, : len(row.block_table)] = row.block_table
            if row.prompt_logprobs is not None:
                prompt_rows.append((row, logits))
                index[logits : logits + new] = self._counting[begin:end]
                logits += new
            elif row.samples:
                index[logits] = end - 1
                logits += 1
            if row.samples:
                sample_rows.append(logits - 1)
                samples.append(row.samples)
        if not logits:
            index[0] = 0
        arrays: dict[str, NDArray[Any]] = {
            "input_ids": self._input_ids[:end],
            "positions": self._positions[:end],
            "block_table": table,
            "query_start": self._query_start[: count + 1],
            "context_len": self._context_len[:count],
            "logits_index": index[: max(logits, 1)],
        }
        return StagedStep(arrays, sample_rows, samples, prompt_rows, logits)

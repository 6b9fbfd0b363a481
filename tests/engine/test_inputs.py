"""Staging: a step's rows as arrays."""

from collections.abc import Sequence

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from pllm.runtime.inputs import InputBuffers, StagedStep
from pllm.runtime.sampling_params import SamplingParams
from pllm.runtime.scheduler_config import SchedulerConfig
from pllm.runtime.step import SampleSpec, ScheduledRow, SchedulerOutput

CONFIG = SchedulerConfig(
    max_num_seqs=4, max_num_batched_tokens=32, max_model_len=64, block_size=8, num_blocks=100, prefill_chunk=16,
    max_logit_rows=32, vocab_size=1000,
)  # fmt: skip


def row(
    seq_id: int, start: int, token_ids: Sequence[int], *, samples: int = 1, prompt: int | None = None
) -> ScheduledRow:
    blocks = -(-(start + len(token_ids)) // CONFIG.block_size)
    specs = tuple(SampleSpec(seq_id + i, SamplingParams(), (), (), seed=0) for i in range(samples))
    targets = () if prompt is None else tuple(token_ids[1:]) + ((7,) if not samples else ())
    return ScheduledRow(seq_id, start, token_ids, [10 * seq_id + i + 1 for i in range(blocks)], specs, prompt, targets)


def stage(*rows: ScheduledRow) -> StagedStep:
    return InputBuffers(CONFIG).stage(SchedulerOutput(rows))


def test_rows_are_laid_one_after_another() -> None:
    step = stage(row(1, 5, [25, 26, 27, 28]), row(2, 17, [37]))
    expected = {
        "input_ids": [25, 26, 27, 28, 37],
        "positions": [5, 6, 7, 8, 17],
        "block_table": [[11, 12, 0], [21, 22, 23]],
        "query_start": [0, 4, 5],
        "context_len": [9, 18],
        "logits_index": [3, 4],
    }
    assert {name: array.tolist() for name, array in step.arrays.items()} == expected
    wide = {"input_ids", "positions", "logits_index"}
    for name, array in step.arrays.items():
        assert array.dtype == (np.int64 if name in wide else np.int32)
        assert array.flags.c_contiguous
    assert step.sample_rows == [0, 1]


def test_one_row_of_logits_is_asked_for_where_none_is_needed() -> None:
    step = stage(row(1, 0, [1, 2, 3], samples=0))
    assert step.arrays["logits_index"].tolist() == [0]
    assert (step.num_logit_rows, step.sample_rows, step.samples) == (0, [], [])


def test_prompt_logprobs_take_a_row_of_logits_for_every_token() -> None:
    first, whole, part = row(1, 0, [1, 2]), row(2, 0, [3, 4, 5], prompt=2), row(3, 4, [6, 7], samples=0, prompt=0)
    step = stage(first, whole, part)
    assert step.arrays["logits_index"].tolist() == [1, 2, 3, 4, 5, 6]
    assert step.sample_rows == [0, 3]
    assert step.prompt_rows == [(whole, 1), (part, 4)]
    assert step.num_logit_rows == 6


def test_a_fork_draws_all_its_tokens_from_one_row() -> None:
    step = stage(row(1, 0, [1, 2], samples=3))
    assert step.sample_rows == [0]
    assert [len(specs) for specs in step.samples] == [3]


def test_nothing_of_an_earlier_step_remains() -> None:
    buffers = InputBuffers(CONFIG)
    buffers.stage(SchedulerOutput((row(1, 40, [1] * 20), row(2, 30, [2]))))
    again = buffers.stage(SchedulerOutput((row(3, 0, [5]), row(1, 9, [6]))))
    assert again.arrays["block_table"].tolist() == [[31, 0], [11, 12]]
    assert again.arrays["query_start"].tolist() == [0, 1, 2]


@given(st.lists(st.tuples(st.integers(0, 50), st.integers(1, 8), st.integers(0, 2)), min_size=1, max_size=4))
def test_every_token_keeps_its_place(shapes: list[tuple[int, int, int]]) -> None:
    rows = [row(i, start, list(range(100 * i, 100 * i + n)), samples=s) for i, (start, n, s) in enumerate(shapes)]
    step = stage(*rows)
    bounds = step.arrays["query_start"]
    for i, each in enumerate(rows):
        span = slice(bounds[i], bounds[i + 1])
        assert step.arrays["input_ids"][span].tolist() == list(each.token_ids)
        assert step.arrays["positions"][span].tolist() == [each.start + j for j in range(len(each.token_ids))]
    sampling = [i for i, each in enumerate(rows) if each.samples]
    if sampling:
        assert step.arrays["logits_index"].tolist() == [bounds[i + 1] - 1 for i in sampling]

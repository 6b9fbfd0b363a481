"""The steps that memory is measured by keep every limit of a step, and reach them."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pllm.build.measurement import Question, ask, largest_steps
from pllm.build.rehearsal import RehearsalSpec
from pllm.runtime.errors import BuildError
from pllm.runtime.inputs import InputBuffers
from pllm.runtime.manifest import KvInfo, ProgramInfo
from pllm.runtime.scheduler_config import SchedulerConfig
from pllm.runtime.step import SchedulerOutput


@st.composite
def configs(draw: st.DrawFn) -> SchedulerConfig:
    sequences = draw(st.integers(1, 40))
    context, block = draw(st.integers(2, 300)), draw(st.sampled_from([1, 16]))
    return SchedulerConfig(
        max_num_seqs=sequences,
        max_num_batched_tokens=draw(st.integers(sequences, 600)),
        max_model_len=context,
        block_size=block,
        num_blocks=-(-context // block) + draw(st.integers(0, 20)),
        prefill_chunk=1,
        max_logit_rows=max(64, sequences),
        vocab_size=10,
    )


def num_tokens(step: SchedulerOutput) -> int:
    return sum(len(row.token_ids) for row in step.rows)


@given(configs())
def test_the_largest_steps_can_be_staged_and_are_the_largest(config: SchedulerConfig) -> None:
    plain, scored = largest_steps(config)
    buffers = InputBuffers(config)
    whole = min(config.max_num_batched_tokens, config.max_num_seqs * config.max_model_len)
    staged = buffers.stage(plain)
    assert len(plain.rows) == staged.num_logit_rows == config.max_num_seqs
    assert num_tokens(plain) == len(staged.arrays["input_ids"]) == whole
    staged = buffers.stage(scored)
    assert len(scored.rows) == config.max_num_seqs
    assert num_tokens(scored) <= config.max_num_batched_tokens
    others = config.max_num_seqs - 1
    longest = min(config.max_num_batched_tokens - others, config.max_model_len)
    assert staged.num_logit_rows == min(config.max_logit_rows, longest + others)
    for row in (*plain.rows, *scored.rows):
        assert 1 <= len(row.token_ids) <= config.max_model_len
        assert all(0 <= block < config.num_blocks for block in row.block_table)
        assert len(row.block_table) == -(-len(row.token_ids) // config.block_size)


def test_a_measurement_that_fails_says_why(tmp_path: Path) -> None:
    spec = RehearsalSpec(
        directory=str(tmp_path),
        program=ProgramInfo(name="main", file="model.so", dims={}, inputs=(), outputs=(), constants=()),
        operators=("ops.so",),
        weights=(),
        kv=KvInfo(dtype="float32", num_layers=1, num_kv_heads=1, block_size=1, head_dim=1),
        max_num_seqs=1,
        max_num_batched_tokens=1,
        max_model_len=1,
        num_threads=1,
        vocab_size=1,
    )
    with pytest.raises(BuildError, match=r"cannot be measured: .*ops\.so"):
        ask(Question(spec, (1,), (1,)))

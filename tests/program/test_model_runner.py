"""The model runner: a scheduler's decision carried out over a real program."""

import time
from collections.abc import Iterator
from contextlib import closing

import numpy as np
import pytest

from pllm.kernels.cpu.library import OperatorError
from pllm.runtime.engine_core import EngineCore
from pllm.runtime.errors import PllmError
from pllm.runtime.model_runner import ModelRunner
from pllm.runtime.sampling_params import SamplingParams
from pllm.runtime.sequence import Request
from pllm.runtime.step import SampleSpec, ScheduledRow, SchedulerOutput, StepResult
from tests.build.graphs import BLOCK_SIZE, VOCABULARY

from .artifacts import Built, answers

PROMPT = list(range(10, 10 + BLOCK_SIZE + 4))
GREEDY = SamplingParams(temperature=0, logprobs=3)


@pytest.fixture(scope="module")
def core(tiny: Built) -> Iterator[EngineCore]:
    with closing(EngineCore.open(tiny.artifact)) as opened:
        yield opened


@pytest.fixture
def runner(core: EngineCore) -> ModelRunner:
    return core.model_runner


def spec(seq_id: int, params: SamplingParams = GREEDY) -> SampleSpec:
    return SampleSpec(seq_id, params, PROMPT, [], seed=7)


def row(seq_id: int, tokens: list[int], blocks: list[int], *, start: int = 0, samples: int = 1) -> ScheduledRow:
    specs = tuple(spec(seq_id + i) for i in range(samples))
    return ScheduledRow(seq_id, start, tokens, blocks, specs)


def step(runner: ModelRunner, *rows: ScheduledRow, copies: tuple[tuple[int, int], ...] = ()) -> StepResult:
    return runner.execute(SchedulerOutput(rows, copies))


def logprobs(result: StepResult) -> list[tuple[tuple[int, float, int], ...]]:
    return [token.logprobs.top for token in result.tokens if token.logprobs is not None]


def test_a_prompt_in_chunks_and_scattered_blocks_is_the_prompt_at_once(runner: ModelRunner) -> None:
    (whole,) = logprobs(step(runner, row(0, PROMPT, [0, 1])))
    assert step(runner, row(0, PROMPT[:7], [9], samples=0)).tokens == ()
    (chunked,) = logprobs(step(runner, row(0, PROMPT[7:], [9, 4], start=7)))
    assert [token for token, _, _ in chunked] == [token for token, _, _ in whole]
    np.testing.assert_allclose([p for _, p, _ in chunked], [p for _, p, _ in whole], atol=1e-5)


def test_copied_blocks_say_what_their_sources_do(runner: ModelRunner) -> None:
    step(runner, row(0, PROMPT, [0, 1], samples=0))
    expected = logprobs(step(runner, row(0, [99], [0, 1], start=len(PROMPT))))
    step(runner, row(0, [5], [0, 1], start=len(PROMPT)))  # another token where the copy's own will be
    copied = logprobs(step(runner, row(0, [99], [6, 7], start=len(PROMPT)), copies=((0, 6), (1, 7))))
    assert copied == expected


def test_n_samples_are_drawn_from_one_row_of_logits(runner: ModelRunner) -> None:
    result = step(runner, row(0, PROMPT, [0, 1], samples=3))
    assert [token.seq_id for token in result.tokens] == [0, 1, 2]
    first, *others = logprobs(result)
    assert others == [first, first]


def test_rows_without_samples_change_nothing_for_the_others(runner: ModelRunner) -> None:
    alone = step(runner, row(0, PROMPT, [0, 1]))
    beside = step(runner, row(1, [5, 6], [2], samples=0), row(0, PROMPT, [3, 4]), row(2, [7], [5]))
    assert [token.seq_id for token in beside.tokens] == [0, 2]
    assert beside.tokens[0].token_id == alone.tokens[0].token_id


def test_prompt_logprobs_are_those_of_each_position(runner: ModelRunner) -> None:
    scored = ScheduledRow(0, 0, PROMPT, [0, 1], (spec(0),), prompt_logprobs=3, prompt_targets=PROMPT[1:])
    result = step(runner, row(1, [5], [2]), scored)
    assert [token.seq_id for token in result.tokens] == [1, 0]
    assert [said.token_id for said in result.prompt_logprobs[0]] == PROMPT[1:]
    for length, said in enumerate(result.prompt_logprobs[0], 1):
        (alone,) = logprobs(step(runner, row(0, PROMPT[:length], [3, 4][: -(-length // BLOCK_SIZE)])))
        assert [token for token, _, _ in said.top[:3]] == [token for token, _, _ in alone[:3]]
        np.testing.assert_allclose([p for _, p, _ in said.top[:3]], [p for _, p, _ in alone[:3]], atol=1e-5)


@pytest.mark.parametrize(
    ("bad", "copies"),
    [
        (row(0, PROMPT, [0, 10**6]), ()),
        (row(0, PROMPT, [0, -1]), ()),
        (row(0, [VOCABULARY], [0]), ()),
        (row(0, PROMPT, [0, 1]), ((0, 10**6),)),
    ],
    ids=["block beyond the pool", "negative block", "token beyond the vocabulary", "copy beyond the pool"],
)
def test_what_cannot_be_done_raises_and_the_next_step_is_right(
    runner: ModelRunner, bad: ScheduledRow, copies: tuple[tuple[int, int], ...]
) -> None:
    expected = logprobs(step(runner, row(0, PROMPT, [0, 1])))
    with pytest.raises((PllmError, OperatorError), match="outside the"):
        step(runner, bad, copies=copies)
    assert logprobs(step(runner, row(0, PROMPT, [0, 1]))) == expected


def test_the_engine_over_it_says_what_it_says(core: EngineCore) -> None:
    (answer,) = answers(core.engine, [PROMPT], SamplingParams(temperature=0, max_tokens=1, logprobs=3))
    assert [entry.top for entry in answer.logprobs] == logprobs(step(core.model_runner, row(0, PROMPT, [0, 1])))


def test_parallel_samples_share_their_prompt_and_part(core: EngineCore) -> None:
    """n sequences over shared blocks: the last, half full, is copied where they part."""
    params = SamplingParams(temperature=1, n=3, seed=5, max_tokens=2 * BLOCK_SIZE, ignore_eos=True)
    together = sample(core, "n", PROMPT, params)
    assert len({tuple(tokens) for tokens in together.values()}) == 3
    core.engine.reset_prefix_cache()
    again = sample(core, "again", PROMPT, params)
    assert again == together
    first_only = sample(core, "one", PROMPT, SamplingParams(temperature=1, n=1, seed=5, max_tokens=32, ignore_eos=True))
    assert first_only[0] == together[0]


def sample(core: EngineCore, name: str, prompt: list[int], params: SamplingParams) -> dict[int, list[int]]:
    core.engine.submit(Request(name, tuple(prompt), params, eos_token_ids=(), arrival_time=time.monotonic()))
    found: dict[int, list[int]] = {}
    while core.engine.has_unfinished:
        for delta in core.engine.step():
            found.setdefault(delta.index, []).extend(delta.token_ids)
    return found

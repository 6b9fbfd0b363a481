"""The CPU one step behind the device: what is launched when, and that the tokens are those of the plain runner."""

import random
from collections.abc import Callable
from dataclasses import replace

import pytest

from pllm.runtime.cuda.pipelined_runner import draws_on_device
from pllm.runtime.sampling_params import SamplingParams
from pllm.runtime.step import SampleSpec, ScheduledRow, SchedulerOutput

from .fake_device import PipelinedRun
from .fake_model import EOS, VOCAB, Run, alone


def greedy(max_tokens: int, **changes: object) -> SamplingParams:
    return SamplingParams(temperature=0, max_tokens=max_tokens, ignore_eos=True, **changes)  # type: ignore[arg-type]


def test_the_next_step_is_launched_before_this_one_is_waited_for() -> None:
    run = PipelinedRun()
    run.add("a", [1, 2, 3], greedy(4))
    run.finish()
    assert run.device.calls == [
        "execute 1", "launch mixed 1", "launch decode 2", "wait mixed 1", "return 1",
        "execute 2", "launch decode 3", "wait decode 2", "return 2",
        "execute 3", "launch decode 4", "wait decode 3", "return 3",
        "execute 4", "wait decode 4", "return 4",  # the fourth token is the last: nothing is launched after it
    ]  # fmt: skip
    assert [run.tokens("a")] == alone([1, 2, 3], greedy(4))


def stopping_prompt(after: int) -> list[int]:
    """A prompt whose greedy continuation ends itself with its `after`-th token."""
    for first in range(VOCAB):
        for second in range(VOCAB):
            tokens = alone([first, second], SamplingParams(temperature=0, max_tokens=after + 3))[0]
            if len(tokens) == after and tokens[-1] == EOS:
                return [first, second]
    raise AssertionError("no prompt stops there")


def test_a_stop_is_seen_one_step_late_and_its_extra_token_is_discarded() -> None:
    prompt = stopping_prompt(after=3)
    run = PipelinedRun()
    run.add("stops", prompt, SamplingParams(temperature=0, max_tokens=20))
    run.add("goes on", [7, 8], greedy(6))
    run.finish()
    assert [run.tokens("stops")] == alone(prompt, SamplingParams(temperature=0, max_tokens=20))
    assert [run.tokens("goes on")] == alone([7, 8], greedy(6))
    assert run.reason("stops") == "stop"
    # Tokens 1 to 3 of both, a fourth of both, which is one too many for the first, and then the other alone.
    assert run.device.rows == [2, 2, 2, 2, 1, 1]
    assert [len(step.rows) for step in run.runner.steps] == [2, 2, 2, 1, 1, 1]


def test_decoding_is_one_launch_a_step_and_nothing_else() -> None:
    run = PipelinedRun(max_num_seqs=8)
    for i in range(8):
        run.add(str(i), [i, i + 1], greedy(30))
    run.step()
    del run.device.calls[:]
    for _ in range(20):
        run.step()
    launched = [call.split()[:2] for call in run.device.calls if call.startswith(("launch", "copy"))]
    assert launched == [["launch", "decode"]] * 20


def test_without_a_free_block_ahead_a_row_waits_for_its_turn() -> None:
    """Blocks of one token and a pool that is nearly full: what cannot be launched ahead is launched when it is asked
    for, also beside rows that could."""
    changes = {"block_size": 2, "num_blocks": 32, "max_num_seqs": 4, "max_num_batched_tokens": 16, "prefill_chunk": 4}
    run = PipelinedRun(**changes)
    for i in range(4):
        run.add(str(i), [i, 3, 5], greedy(20))
    run.finish()
    for i in range(4):
        assert [run.tokens(str(i))] == alone([i, 3, 5], greedy(20))
    assert run.engine.stats().num_preemptions > 0


def test_a_sequence_whose_logits_break_fails_alone() -> None:
    run = PipelinedRun()
    run.add("good", [1, 2], greedy(8))
    run.add("bad", [3, 4], greedy(8))
    run.step()
    run.device.broken = {1}
    run.finish()
    assert [run.tokens("good")] == alone([1, 2], greedy(8))
    assert run.reason("bad") == "error"


def test_aborted_sequences_are_dropped() -> None:
    run = PipelinedRun()
    for name in ("a", "b"):
        run.add(name, [1, ord(name) % VOCAB], greedy(12))
    for _ in range(3):
        run.step()
    run.engine.abort("a")
    run.finish()
    assert [run.tokens("b")] == alone([1, ord("b") % VOCAB], greedy(12))
    assert len(run.tokens("a")) == 3


KINDS: tuple[Callable[[random.Random], SamplingParams], ...] = (
    lambda rng: SamplingParams(temperature=0, max_tokens=rng.randint(1, 25)),
    lambda rng: SamplingParams(temperature=1.0, seed=rng.randrange(99), max_tokens=rng.randint(1, 25)),
    lambda rng: SamplingParams(temperature=0, max_tokens=9, logprobs=2),
    lambda rng: SamplingParams(temperature=0, max_tokens=9, presence_penalty=1.5, min_tokens=4),
    lambda rng: SamplingParams(temperature=0, max_tokens=rng.randint(1, 25), presence_penalty=1.5),
    lambda rng: SamplingParams(temperature=0.9, seed=7, max_tokens=rng.randint(1, 25), repetition_penalty=1.3),
    lambda rng: SamplingParams(temperature=0.7, seed=5, max_tokens=9, n=3),
    lambda rng: SamplingParams(temperature=0, max_tokens=5, prompt_logprobs=2),
    lambda rng: SamplingParams(temperature=0, max_tokens=15, stop_token_ids=(3, 4, 5)),
)


@pytest.mark.parametrize("seed", range(40))
def test_whatever_comes_the_tokens_are_those_of_the_plain_runner(seed: int) -> None:
    """Requests of every kind that come and go at any time, over a pool from ample to scarce, with shared prefixes."""
    rng = random.Random(seed)
    changes = {
        "block_size": rng.choice((1, 2, 4)),
        "num_blocks": 64 * rng.choice((1, 1, 2, 8)),
        "max_num_seqs": rng.choice((3, 6, 16)),
        "max_num_batched_tokens": rng.choice((24, 64)),
        "prefill_chunk": rng.choice((3, 16)),
        "max_logit_rows": 32,
    }
    runs = (PipelinedRun(**changes), Run(**changes))
    shared = [rng.randrange(VOCAB - 1) for _ in range(12)]
    said = []
    for index in range(14):
        own = [rng.randrange(VOCAB - 1) for _ in range(rng.randint(1, 12))]
        prompt, params = shared[: rng.choice((0, 0, 8, 12))] + own, rng.choice(KINDS)(rng)
        for run in runs:
            run.add(str(index), prompt, params)
        said.append((str(index), params.n))
        for _ in range(rng.randint(0, 4)):
            runs[0].step()
    for run in runs:
        run.finish()
    for name, count in said:
        for i in range(count):
            assert runs[0].tokens(name, i) == runs[1].tokens(name, i), (name, i)
            assert runs[0].reason(name, i) == runs[1].reason(name, i)
            first, second = (
                [delta.logprobs for delta in run._of(name, i)] + [delta.prompt_logprobs for delta in run._of(name, i)]
                for run in runs
            )
            assert first == second


@pytest.mark.parametrize(
    ("start", "table", "copies", "is_kept"),
    [
        (3, [5, 6], (), True),
        (3, [9, 6], (), True),  # its full block is another's, of the same contents
        (3, [5, 7], (), False),  # it was preempted, and has come back on other blocks
        (3, [5, 6], ((8, 6),), False),  # the block was filled after the launch wrote to it
        (2, [5, 6], (), False),  # it starts again, further back
    ],
)
def test_what_was_launched_is_kept_only_where_it_is_what_is_asked_for(
    start: int, table: list[int], copies: tuple[tuple[int, int], ...], is_kept: bool
) -> None:
    run = PipelinedRun(block_size=2)
    spec = SampleSpec(0, greedy(20), (1, 2, 3), [], seed=0)
    runner, device = run.runner._runner, run.device  # type: ignore[attr-defined]
    prompt = ScheduledRow(0, 0, [1, 2, 3], [5, 6], (spec,))
    (first,) = runner.execute(SchedulerOutput((prompt,))).tokens
    assert device.calls[:2] == ["launch mixed 1", "launch decode 2"]
    del device.calls[:]
    spec.output_token_ids.append(first.token_id)  # type: ignore[attr-defined]
    row = ScheduledRow(0, start, [first.token_id], table, (spec,))
    runner.execute(SchedulerOutput((row,), copies))
    launched = [call for call in device.calls if call.startswith(("copy", "launch", "wait"))]
    assert ("wait decode 2" in launched) == is_kept
    assert ("launch decode 3" in launched and "wait decode 3" in launched) == (not is_kept)


@pytest.mark.parametrize(
    "changes",
    [
        {"logprobs": 0}, {"prompt_logprobs": 1}, {"allowed_token_ids": (1,)}, {"logit_bias": {1: 2.0}},
        {"min_tokens": 1}, {"min_tokens": 1, "repetition_penalty": 1.1},
    ],
)  # fmt: skip
def test_what_needs_logits_is_sampled_on_the_cpu(changes: dict[str, object]) -> None:
    plain = SampleSpec(0, SamplingParams(temperature=0.5, top_k=3, top_p=0.9, min_p=0.1), (1,), [], seed=0)
    assert draws_on_device((plain,))
    penalised = SamplingParams(repetition_penalty=1.1, frequency_penalty=0.1, presence_penalty=0.1)
    assert draws_on_device((replace(plain, params=penalised),))
    assert not draws_on_device(())
    assert not draws_on_device((plain, plain))
    assert not draws_on_device((replace(plain, params=SamplingParams(**changes)),))  # type: ignore[arg-type]
    assert not draws_on_device((replace(plain, bad_words_token_ids=((1,),)),))
    assert not draws_on_device((replace(plain, matcher=object()),))  # type: ignore[arg-type]

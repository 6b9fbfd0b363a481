"""When requests first ran, and how many prompt tokens went through the model."""

import time

from pllm.runtime.sampling_params import SamplingParams
from pllm.runtime.step import TokenDelta

from .fake_model import Run

SHORT = SamplingParams(temperature=0, max_tokens=4, ignore_eos=True)


def first_and_later(deltas: list[TokenDelta], name: str, index: int = 0) -> tuple[float | None, set[float | None]]:
    """The first-scheduled time in a sequence's first delta, and those in all its later ones."""
    times = [delta.first_scheduled_time for delta in deltas if (delta.request_id, delta.index) == (name, index)]
    return times[0], set(times[1:])


def test_a_first_delta_says_when_its_request_first_ran() -> None:
    run = Run(max_num_seqs=1)
    added = time.monotonic()
    run.add("a", [1, 2, 3], SHORT)
    run.add("b", [4, 5, 6], SHORT)
    run.step()
    first_step_done = time.monotonic()
    run.finish()
    (a, later_a), (b, later_b) = first_and_later(run.deltas, "a"), first_and_later(run.deltas, "b")
    assert a is not None
    assert b is not None
    assert added <= a <= first_step_done <= b <= time.monotonic()
    assert later_a == later_b == {None}


def test_a_chunked_prompt_ran_first_with_its_first_chunk() -> None:
    run = Run(max_num_batched_tokens=4, max_num_seqs=1)
    run.add("a", range(12), SHORT)
    run.step()
    after_the_first_chunk = time.monotonic()
    run.finish()
    first, _ = first_and_later(run.deltas, "a")
    assert first is not None
    assert first <= after_the_first_chunk


def test_answers_of_one_request_ran_first_together() -> None:
    run = Run()
    run.add("a", [1, 2, 3], SamplingParams(n=3, seed=1, max_tokens=4, ignore_eos=True))
    run.finish()
    times = [first_and_later(run.deltas, "a", index) for index in range(3)]
    assert times[0][0] is not None
    assert times == [times[0]] * 3


def test_a_preemption_changes_nothing_of_it() -> None:
    run = Run(max_model_len=32, num_blocks=9, max_num_seqs=3, enable_prefix_caching=False)
    for name in "abc":
        run.add(name, [1, 2, 3], SamplingParams(temperature=0, max_tokens=None, ignore_eos=True))
    run.step()
    first_step_done = time.monotonic()
    run.finish()
    assert run.engine.stats().num_preemptions > 0
    for name in "abc":
        first, later = first_and_later(run.deltas, name)
        assert first is not None
        assert first <= first_step_done
        assert later == {None}


def test_prompt_tokens_are_counted_as_they_are_computed() -> None:
    run = Run(max_num_batched_tokens=8, prefill_chunk=8, max_num_seqs=2)
    prompt = list(range(20))
    run.add("a", prompt, SHORT)
    counts = []
    while run.engine.has_unfinished:
        run.step()
        counts.append(run.engine.stats().prompt_tokens_computed)
    assert counts == [8, 16, 20, 20, 20, 20], "what it generates does not count"
    run.add("b", prompt, SHORT)
    run.finish()
    cached = run.engine.stats().prefix_cache_hits
    assert cached > 0
    assert run.engine.stats().prompt_tokens_computed == 20 + 20 - cached, "what was found is not computed"


def test_prompt_tokens_computed_again_count_again_and_generated_ones_never() -> None:
    run = Run(max_model_len=32, num_blocks=9, max_num_seqs=3, enable_prefix_caching=False)
    for name in "abc":
        run.add(name, [1, 2, 3], SamplingParams(temperature=0, max_tokens=None, ignore_eos=True))
    run.finish()
    stats = run.engine.stats()
    assert stats.prompt_tokens_computed == 3 * (3 + stats.num_preemptions)

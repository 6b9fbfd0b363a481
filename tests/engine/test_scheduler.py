"""The scheduler over the fake model: whoever else is there, a request says what it says alone."""

import pytest

from pllm.runtime import prefix_cache
from pllm.runtime.errors import (
    ContextLengthExceededError,
    DoesNotFitError,
    QueueFullError,
    RequestError,
    UserInputError,
)
from pllm.runtime.sampling_params import SamplingParams
from pllm.runtime.scheduler import Scheduler

from .fake_model import EOS, VOCAB, Run, alone, config

GREEDY = SamplingParams(temperature=0, max_tokens=24, ignore_eos=True)
LONG = SamplingParams(temperature=0, max_tokens=None, ignore_eos=True)


def sampled(seed: int, **changes: object) -> SamplingParams:
    return SamplingParams(seed=seed, ignore_eos=True, **({"max_tokens": 20} | changes))  # type: ignore[arg-type]


def test_a_request_takes_its_tokens_one_a_step_and_ends_with_length() -> None:
    run = Run()
    run.add("a", [1, 2, 3], GREEDY)
    deltas = [run.step() for _ in range(24)]
    assert [len(step) for step in deltas] == [1] * 24
    assert [step[0].finish_reason for step in deltas] == [None] * 23 + ["length"]
    assert not run.engine.has_unfinished
    assert run.engine.step() == []


def test_end_of_sequence_and_stop_tokens() -> None:
    free = alone([1, 2, 3], GREEDY)[0]
    stopper = free[5]
    run = Run()
    run.add(
        "stop token", [1, 2, 3], SamplingParams(temperature=0, ignore_eos=True, max_tokens=24, stop_token_ids=[stopper])
    )
    run.add("eos", [1, 2, 3], SamplingParams(temperature=0, max_tokens=24, logit_bias={EOS: 100}))
    run.add("ignored", [1, 2, 3], SamplingParams(temperature=0, max_tokens=4, ignore_eos=True, logit_bias={EOS: 100}))
    run.finish()
    assert run.tokens("stop token") == free[: free.index(stopper) + 1]
    last = {delta.request_id: (delta.finish_reason, delta.stop_reason) for delta in run.deltas}
    assert last == {"stop token": ("stop", stopper), "eos": ("stop", None), "ignored": ("length", None)}
    assert run.tokens("eos") == [EOS]
    assert run.tokens("ignored") == [EOS] * 4


def test_a_sequence_ends_where_the_context_does() -> None:
    for params in (LONG, SamplingParams(temperature=0, ignore_eos=True, max_tokens=1000)):
        run = Run(max_model_len=20).finish()
        run.add("a", range(13), params)
        run.finish()
        assert (len(run.tokens("a")), run.reason("a")) == (7, "length")


def test_many_at_once_say_what_each_says_alone() -> None:
    run = Run(max_num_seqs=8, prefill_chunk=5)
    prompts = {f"{length}": [(length * 7 + i) % 30 for i in range(length)] for length in range(1, 40, 3)}
    for name, prompt in prompts.items():
        run.add(name, prompt, sampled(len(prompt)))
        run.step()
    run.finish()
    for name, prompt in prompts.items():
        assert run.tokens(name) == alone(prompt, sampled(len(prompt)))[0], name


@pytest.mark.parametrize("chunk", [1, 3, 4, 16])
def test_a_chunked_prompt_says_what_a_whole_one_says(chunk: int) -> None:
    run = Run(max_num_batched_tokens=chunk, max_num_seqs=1)
    run.add("a", range(30), GREEDY)
    run.finish()
    assert run.tokens("a") == alone(range(30), GREEDY)[0]
    assert max(len(row.token_ids) for out in run.runner.steps for row in out.rows) == chunk


def test_prompts_share_a_chunk_only_while_someone_decodes() -> None:
    run = Run(prefill_chunk=6, max_num_batched_tokens=64, enable_prefix_caching=False)
    run.add("a", range(20), GREEDY)
    run.add("b", range(20), GREEDY)
    run.step()
    assert [len(row.token_ids) for row in run.runner.steps[-1].rows] == [20, 20], "nobody waits for a token"
    run.add("c", range(8), GREEDY)
    run.add("d", range(8), GREEDY)
    run.step()
    assert [len(row.token_ids) for row in run.runner.steps[-1].rows] == [1, 1, 6]
    run.step()
    assert [len(row.token_ids) for row in run.runner.steps[-1].rows] == [1, 1, 2, 4]


def test_no_step_computes_more_of_prompts_than_the_bound() -> None:
    run = Run(max_prefill_tokens=5, max_num_batched_tokens=64, prefill_chunk=8, max_num_seqs=4)
    run.add("a", range(12), GREEDY)
    run.add("b", range(12, 24), GREEDY)
    run.step()
    assert [len(row.token_ids) for row in run.runner.steps[-1].rows] == [5]
    run.step()
    run.step()
    assert [len(row.token_ids) for row in run.runner.steps[-1].rows] == [2, 3]
    run.step()
    assert [len(row.token_ids) for row in run.runner.steps[-1].rows] == [1, 5]
    run.finish()
    assert run.tokens("a") == alone(range(12), GREEDY)[0]
    assert run.tokens("b") == alone(range(12, 24), GREEDY)[0]


def test_who_is_aborted_amid_a_long_prompt_frees_everything_with_the_step() -> None:
    run = Run(max_prefill_tokens=4, max_num_batched_tokens=64, max_num_seqs=2)
    run.add("a", range(30), GREEDY)
    run.step()
    assert run.engine.stats().kv_blocks_used > 0
    run.engine.abort("a")
    assert run.engine.stats().kv_blocks_used == 0
    assert not run.engine.has_unfinished


def test_no_decoding_sequence_ever_waits_for_a_prompt() -> None:
    run = Run(max_num_seqs=4, max_num_batched_tokens=4, prefill_chunk=4, max_model_len=64)
    for name in "abc":
        run.add(name, [1, 2], LONG)
    for _ in range(4):
        run.step()
    run.add("d", range(30), GREEDY)
    for _ in range(20):
        assert {delta.request_id for delta in run.step()} >= {"a", "b", "c"}
        assert sum(len(row.token_ids) for row in run.runner.steps[-1].rows) == 4


def test_blocks_are_allocated_as_tokens_come() -> None:
    run = Run(max_num_batched_tokens=64, prefill_chunk=8, block_size=4, max_num_seqs=2)
    run.add("a", range(4), GREEDY)
    run.step()
    run.add("b", range(1, 31), GREEDY)
    run.step()
    assert run.engine.stats().kv_blocks_used == 2 + 2
    run.step()
    assert run.engine.stats().kv_blocks_used == 2 + 4
    assert run.engine.stats().kv_tokens_held == 6 + 16


# --- preemption


@pytest.mark.parametrize("caching", [True, False])
def test_sixteen_requests_in_a_pool_of_little_more_than_one_sequence(caching: bool) -> None:
    run = Run(max_model_len=40, num_blocks=11, max_num_seqs=16, enable_prefix_caching=caching)
    prompts = [[(7 * index + i) % 30 for i in range(1 + index % 7)] for index in range(16)]
    for index, prompt in enumerate(prompts):
        run.add(str(index), prompt, sampled(index, max_tokens=30))
    run.finish()
    assert run.engine.stats().num_preemptions > 5
    for index, prompt in enumerate(prompts):
        assert run.tokens(str(index)) == alone(prompt, sampled(index, max_tokens=30))[0]


def test_the_latest_of_the_least_urgent_gives_way_and_is_first_in_line_again() -> None:
    run = Run(max_model_len=32, num_blocks=9, max_num_seqs=3, enable_prefix_caching=False)
    run.add("late but urgent", [1, 2, 3], LONG, priority=-1)
    run.add("early", [4, 5, 6], LONG)
    run.add("late", [7, 8, 9], LONG)
    run.add("waits", [1], LONG)
    while not run.engine.stats().num_preemptions:
        run.step()
    assert [seq.request.request_id for seq in run.scheduler._waiting] == ["late", "waits"]
    while run.engine.stats().num_preemptions == 1:
        run.step()
    assert [seq.request.request_id for seq in run.scheduler._running] == ["late but urgent"]
    assert [seq.request.request_id for seq in run.scheduler._waiting] == ["early", "late", "waits"]


def test_two_long_prompts_do_not_take_turns_at_preempting_each_other() -> None:
    run = Run(max_model_len=32, num_blocks=10, max_num_seqs=4, prefill_chunk=4, enable_prefix_caching=False)
    run.add("decodes", [1], LONG)
    run.step()
    run.add("a", range(24), SamplingParams(temperature=0, max_tokens=1))
    run.add("b", range(1, 25), SamplingParams(temperature=0, max_tokens=1))
    run.finish()
    assert run.engine.stats().num_preemptions == 0
    assert run.runner.num_tokens == 31 + 24 + 24


def test_what_a_preempted_sequence_finds_of_its_own_counts_as_computed() -> None:
    run = Run(max_model_len=32, num_blocks=9, max_num_seqs=3)
    for index in range(3):
        run.add(str(index), [index, 2, 3, 4, 5], LONG)
    run.finish()
    stats = run.engine.stats()
    assert stats.num_preemptions
    assert (stats.prefix_cache_queries, stats.prefix_cache_hits) == (15, 0)
    assert {delta.num_cached_tokens for delta in run.deltas} == {0}


# --- admission


def test_first_come_first_served_within_a_priority() -> None:
    run = Run(max_num_seqs=1)
    for name, priority in (("a", 0), ("b", 0), ("urgent", -5), ("c", 0), ("patient", 5), ("d", 0)):
        run.add(name, [1, 2], SamplingParams(temperature=0, max_tokens=1), priority=priority)
    run.finish()
    assert [delta.request_id for delta in run.deltas] == ["urgent", "a", "b", "c", "d", "patient"]


def test_nobody_overtakes_one_who_does_not_fit() -> None:
    run = Run(max_model_len=32, num_blocks=8, enable_prefix_caching=False)
    run.add("a", range(20), SamplingParams(temperature=0, max_tokens=4))
    run.step()
    run.add("big", range(24), SamplingParams(temperature=0, max_tokens=1))
    run.add("small", [1], SamplingParams(temperature=0, max_tokens=1))
    run.finish()
    finished = [delta.request_id for delta in run.deltas if delta.finish_reason]
    assert finished == ["a", "big", "small"]


def test_a_full_queue_refuses() -> None:
    run = Run(max_num_seqs=2, max_waiting=1)
    for name in "abc":
        run.add(name, [1], LONG)
    with pytest.raises(QueueFullError):
        run.add("d", [1], LONG)
    run.step()
    with pytest.raises(QueueFullError):
        run.add("d", [1], LONG)
    run.engine.abort("c")
    run.add("d", [1], LONG)


def test_what_can_never_run_is_refused_with_the_numbers() -> None:
    run = Run(max_model_len=16, max_num_seqs=4)
    with pytest.raises(ContextLengthExceededError) as context:
        run.add("a", range(16))
    assert context.value.message == (
        "This model's maximum context length is 16 tokens. However, your prompt contains 16 input tokens."
    )
    assert (context.value.code, context.value.http_status) == ("context_length_exceeded", 400)
    run.add("fits", range(15))
    for fields, param in (
        ({"prompt": []}, "prompt"),
        ({"prompt": [VOCAB]}, "prompt"),
        ({"prompt": [-1]}, "prompt"),
        ({"prompt": [2**40]}, "prompt"),
        ({"prompt": [1], "params": SamplingParams(n=5)}, "n"),
        ({"prompt": [1], "params": SamplingParams(logit_bias={VOCAB: 1})}, "logit_bias"),
        ({"prompt": [1], "params": SamplingParams(allowed_token_ids=[1, VOCAB])}, "allowed_token_ids"),
    ):
        with pytest.raises(RequestError) as refusal:
            run.add("b", **fields)  # type: ignore[arg-type]
        assert refusal.value.param == param
    with pytest.raises(RequestError, match="fits"):
        run.add("fits", [1])
    run.finish()


def test_a_pool_smaller_than_the_context_is_refused_with_the_numbers() -> None:
    with pytest.raises(DoesNotFitError, match=r"holds 60 tokens \(15 blocks of 4\).*max_model_len = 61.*lower.*to 60"):
        Scheduler(config(num_blocks=15, max_model_len=61))
    for name in ("max_num_batched_tokens", "max_logit_rows"):
        with pytest.raises(UserInputError, match=f"{name} = 3"):
            config(max_num_seqs=4, **{name: 3})


# --- n > 1


def test_parallel_samples_share_the_prompt_and_go_their_own_ways() -> None:
    run = Run()
    run.add("a", range(10), sampled(3, n=4))
    run.step()
    stats = run.engine.stats()
    assert (stats.num_running, stats.kv_blocks_used, stats.kv_tokens_held) == (4, 3, 10)
    run.step()
    stats = run.engine.stats()
    assert len(run.runner.steps[-1].copies) == 3, "all but one copy the partial block"
    assert (stats.kv_blocks_used, stats.kv_tokens_held) == (2 + 4, 8 + 4 * 3)
    run.finish()
    answers = [run.tokens("a", index) for index in range(4)]
    assert len({tuple(answer) for answer in answers}) == 4
    assert answers == alone(range(10), sampled(3, n=4))
    assert [run.reason("a", index) for index in range(4)] == ["length"] * 4


def test_parallel_samples_wait_until_all_of_them_can_run() -> None:
    run = Run(max_num_seqs=4)
    run.add("a", [1], GREEDY)
    run.step()
    run.add("four", range(5), sampled(1, n=4))
    run.add("behind", [2], GREEDY)
    run.step()
    assert run.engine.stats().num_running == 1
    run.finish()
    assert [run.tokens("four", index) for index in range(4)] == alone(range(5), sampled(1, n=4))


def test_parallel_samples_survive_preemption() -> None:
    run = Run(max_model_len=32, num_blocks=9, max_num_seqs=8, max_num_batched_tokens=8, prefill_chunk=3)
    for index in range(3):
        run.add(str(index), range(index, index + 6), sampled(index, n=3))
    run.finish()
    assert run.engine.stats().num_preemptions
    for index in range(3):
        answers = [run.tokens(str(index), each) for each in range(3)]
        assert answers == alone(range(index, index + 6), sampled(index, n=3))


def test_what_each_sample_said_is_found_again() -> None:
    run = Run()
    run.add("a", range(10), sampled(3, n=3))
    run.finish()
    for index in range(3):
        run.add(f"after {index}", [*range(10), *run.tokens("a", index)], sampled(3, max_tokens=1))
        run.finish()
        assert run.deltas[-1].num_cached_tokens == 28


def test_without_a_seed_each_request_draws_its_own() -> None:
    run = Run()
    params = SamplingParams(ignore_eos=True, max_tokens=20, n=2)
    run.add("a", [1, 2, 3], params)
    run.add("b", [1, 2, 3], params)
    run.finish()
    assert len({tuple(run.tokens(name, index)) for name in "ab" for index in range(2)}) == 4


# --- prefix caching


def test_a_hit_says_what_a_miss_says_and_computes_less() -> None:
    run = Run()
    run.add("first", range(18), GREEDY)
    run.finish()
    computed = run.runner.num_tokens
    run.add("again", range(18), GREEDY)
    run.add("longer", list(range(18)) + run.tokens("first")[:6] + [3], GREEDY)
    run.finish()
    assert run.tokens("again") == run.tokens("first") == alone(range(18), GREEDY)[0]
    assert run.tokens("longer") == alone(list(range(18)) + run.tokens("first")[:6] + [3], GREEDY)[0]
    cached = {delta.request_id: delta.num_cached_tokens for delta in run.deltas}
    assert cached == {"first": 0, "again": 16, "longer": 24}, "what was generated is found again too"
    assert run.runner.num_tokens - computed == (18 - 16 + 23) + (25 - 24 + 23)
    stats = run.engine.stats()
    assert (stats.prefix_cache_queries, stats.prefix_cache_hits) == (18 + 18 + 25, 16 + 24)


def test_the_last_block_of_a_wholly_cached_prompt_is_computed_again() -> None:
    run = Run(block_size=4)
    for name in "ab":
        run.add(name, range(16), GREEDY)
        run.finish()
    assert run.deltas[-1].num_cached_tokens == 12
    assert run.tokens("a") == run.tokens("b")


def test_side_by_side_prefixes_become_one() -> None:
    run = Run()
    for index in range(4):
        run.add(str(index), [*range(16), index], GREEDY)
    run.step()
    assert run.engine.stats().kv_blocks_used == 4 + 4
    run.finish()
    for index in range(4):
        assert run.tokens(str(index)) == alone([*range(16), index], GREEDY)[0]


def test_other_salts_share_nothing() -> None:
    run = Run()
    for name, salt in (("a", ""), ("b", "x"), ("c", "y"), ("d", "x")):
        run.add(name, range(18), GREEDY, cache_salt=salt)
        run.finish()
    assert {d.request_id: d.num_cached_tokens for d in run.deltas} == {"a": 0, "b": 0, "c": 0, "d": 16}


def test_colliding_hashes_are_found_out_by_the_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prefix_cache, "_digest", lambda data: b"the same for all")
    run = Run()
    prompts = [range(18), range(1, 19), [*range(4, 8), *range(4, 18)], range(18)]
    for index, prompt in enumerate(prompts):
        run.add(str(index), prompt, GREEDY)
        run.finish()
        assert run.tokens(str(index)) == alone(prompt, GREEDY)[0]
    assert {d.request_id: d.num_cached_tokens for d in run.deltas} == {"0": 0, "1": 0, "2": 0, "3": 4}


def test_a_parent_that_collides_is_found_out_by_the_chain(monkeypatch: pytest.MonkeyPatch) -> None:
    """Digests of the block's own tokens alone: a second block is then found whatever came before it."""
    monkeypatch.setattr(prefix_cache, "_digest", lambda data: data[-16:])
    run = Run(block_size=4)
    run.add("a", [1, 2, 3, 4, 5, 6, 7, 8, 9], GREEDY)
    run.finish()
    run.add("b", [4, 3, 2, 1, 5, 6, 7, 8, 9], GREEDY)
    run.finish()
    assert run.deltas[-1].num_cached_tokens == 0
    assert run.tokens("b") == alone([4, 3, 2, 1, 5, 6, 7, 8, 9], GREEDY)[0]


def test_reset_forgets_all_prefixes_even_while_they_are_used() -> None:
    run = Run()
    run.add("a", range(18), GREEDY)
    run.step()
    run.engine.reset_prefix_cache()
    run.finish()
    assert run.engine.stats().kv_blocks_cached == 0, "what follows a forgotten block cannot be found"
    run.add("b", range(18), GREEDY)
    run.finish()
    run.engine.reset_prefix_cache()
    assert run.engine.stats().kv_blocks_cached == 0
    assert run.tokens("a") == run.tokens("b")


def test_caching_can_be_turned_off() -> None:
    run = Run(enable_prefix_caching=False)
    for name in "ab":
        run.add(name, range(18), GREEDY)
        run.finish()
    stats = run.engine.stats()
    assert (stats.kv_blocks_cached, stats.prefix_cache_hits, run.deltas[-1].num_cached_tokens) == (0, 0, 0)


# --- abort


@pytest.mark.parametrize("phase", ["waiting", "prefill", "decode", "preempted"])
def test_abort_frees_at_once_and_neighbours_go_on(phase: str) -> None:
    run = Run(max_model_len=40, num_blocks=12, max_num_seqs=2 if phase == "waiting" else 4, prefill_chunk=4,
              enable_prefix_caching=False)  # fmt: skip
    run.add("neighbour", [1, 2, 3], sampled(1, max_tokens=30))
    run.step()
    run.add("other", range(8), sampled(2, max_tokens=30))
    run.add("gone", range(2, 12), sampled(2, max_tokens=30))
    if phase == "prefill":
        for _ in range(3):
            run.step()
    while phase == "decode" and not run.tokens("gone"):
        run.step()
    while phase == "preempted" and not run.engine.stats().num_preemptions:
        run.step()
    before = run.engine.stats()
    gone = next(seq for seq in run.scheduler._requests["gone"])
    held = len(gone.block_table)
    assert (held > 0) == (phase in ("prefill", "decode"))
    run.engine.abort("gone")
    run.check()
    assert run.engine.stats().kv_blocks_used == before.kv_blocks_used - held
    run.engine.abort("gone")
    run.engine.abort("never was")
    run.finish()
    assert run.reason("gone") is None if run.tokens("gone") else True
    assert run.tokens("neighbour") == alone([1, 2, 3], sampled(1, max_tokens=30))[0]
    assert run.tokens("other") == alone(range(8), sampled(2, max_tokens=30))[0]


def test_abort_in_flight_drops_the_result_and_frees_at_update() -> None:
    run = Run()
    run.add("a", [1, 2, 3], GREEDY)
    run.add("b", [4, 5, 6], GREEDY)
    out = run.scheduler.schedule()
    run.engine.abort("a")
    assert run.engine.stats().kv_blocks_used == 2, "the model runner is at work on them"
    deltas = run.scheduler.update(out, run.runner.execute(out))
    assert [delta.request_id for delta in deltas] == ["b"]
    assert run.engine.stats().kv_blocks_used == 1
    run.add("a", [1, 2, 3], GREEDY)
    run.deltas += deltas
    run.finish()
    assert run.tokens("a") == alone([1, 2, 3], GREEDY)[0]


@pytest.mark.parametrize("gone", [(0,), (1,), (0, 2), (1, 2), (0, 1, 2)])
@pytest.mark.parametrize("when", ["waiting", "prefill", "in flight", "fork in flight", "decode", "decode in flight"])
def test_one_of_several_samples_is_aborted(gone: tuple[int, ...], when: str) -> None:
    run = Run(max_num_batched_tokens=6, max_num_seqs=4)
    run.add("a", range(10), sampled(9, n=3))
    for _ in range({"waiting": 0, "prefill": 1, "in flight": 0, "fork in flight": 1}.get(when, 4)):
        run.step()
    out = run.scheduler.schedule() if "flight" in when else None
    for index in gone:
        run.engine.abort("a", index)
    if out:
        run.deltas += run.scheduler.update(out, run.runner.execute(out))
    run.check()
    run.finish()
    reference = alone(range(10), sampled(9, n=3))
    for index in range(3):
        said = run.tokens("a", index)
        assert said == (reference[index][: len(said)] if index in gone else reference[index])
        assert len(said) <= 3 or index not in gone


# --- failures


def test_a_row_of_nan_fails_alone_and_its_blocks_are_not_cached() -> None:
    run = Run(block_size=4, max_num_batched_tokens=64)
    run.add("good", range(1, 12), GREEDY)
    run.add("shared", range(8), GREEDY)
    run.add("bad", range(12), GREEDY)
    run.runner.broken = {2}
    run.finish()
    (delta,) = [delta for delta in run.deltas if delta.request_id == "bad"]
    assert (delta.finish_reason, delta.token_ids, "NaN" in str(delta.error)) == ("error", [], True)
    assert run.tokens("good") == alone(range(1, 12), GREEDY)[0]
    run.add("again", range(12), GREEDY)
    run.finish()
    assert run.deltas[-1].num_cached_tokens == 8, "only what another request computed"
    assert run.tokens("again") == alone(range(12), GREEDY)[0]


def test_nan_after_some_chunks_forgets_the_chunks_before() -> None:
    run = Run(block_size=4, max_num_batched_tokens=4, max_num_seqs=2, prefill_chunk=4)
    run.add("bad", range(20), GREEDY)
    run.runner.broken = {0}
    run.step()
    run.step()
    assert len(run.scheduler._pool._prefixes) == 2
    run.finish()
    assert len(run.scheduler._pool._prefixes) == 0
    assert run.engine.stats().kv_blocks_cached == 0


def test_a_fork_on_nan_fails_as_a_whole() -> None:
    run = Run()
    run.add("bad", range(10), sampled(1, n=3))
    run.add("good", range(5), GREEDY)
    run.runner.broken = {0, 1, 2}
    run.finish()
    assert [run.reason("bad", index) for index in range(3)] == ["error"] * 3
    assert run.tokens("good") == alone(range(5), GREEDY)[0]


def test_a_step_that_raises_is_the_callers() -> None:
    run = Run()
    run.add("a", [1], GREEDY)
    run.runner.execute = lambda out: 1 / 0  # type: ignore[method-assign,assignment,return-value]
    with pytest.raises(ZeroDivisionError):
        run.engine.step()


# --- log probabilities


@pytest.mark.parametrize("rows", [4, 7, 64])
def test_prompt_logprobs_cover_the_prompt_once_however_it_is_cut(rows: int) -> None:
    params = SamplingParams(temperature=0, ignore_eos=True, max_tokens=8, prompt_logprobs=2, logprobs=1)
    run = Run(max_model_len=32, num_blocks=9, max_num_seqs=4, max_logit_rows=rows)
    run.add("cached", range(20), GREEDY)
    run.finish()
    for name in "abc":
        run.add(name, range(20), params)
        run.add(name + " beside", range(3), GREEDY)
    run.finish()
    whole = Run()
    whole.add("a", range(20), params)
    whole.finish()
    expected = whole.deltas[0].prompt_logprobs
    assert expected is not None
    assert [entry.token_id for entry in expected] == list(range(1, 20))
    for name in "abc":
        mine = [delta for delta in run.deltas if delta.request_id == name]
        assert mine[0].prompt_logprobs == expected
        assert all(delta.prompt_logprobs is None for delta in mine[1:])
        assert mine[0].num_cached_tokens == 0, "a hit would leave positions without logits"
        assert [delta.logprobs for delta in mine] == [delta.logprobs for delta in whole.deltas]


def test_prompt_logprobs_of_parallel_samples_come_with_the_first() -> None:
    run = Run()
    run.add("a", range(6), sampled(1, n=2, prompt_logprobs=0))
    run.finish()
    entries = {delta.index: delta.prompt_logprobs for delta in run.deltas[:2]}
    assert entries[1] is None
    assert entries[0] is not None
    assert len(entries[0]) == 5


def test_a_single_token_prompt_has_no_prompt_logprobs() -> None:
    run = Run()
    run.add("a", [1], sampled(1, prompt_logprobs=1))
    run.finish()
    assert run.deltas[0].prompt_logprobs == []

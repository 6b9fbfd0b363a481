"""Requests come, go and are cut off at random in a tiny pool: what is said is what each says alone."""

from functools import cache

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from pllm.runtime.errors import QueueFullError
from pllm.runtime.sampling_params import SamplingParams

from .fake_model import Run, alone

CONTEXT = 24


@cache
def reference(prompt: tuple[int, ...], n: int, seed: int, max_tokens: int, penalty: float) -> list[list[int]]:
    return alone(prompt, parameters(n, seed, max_tokens, penalty), max_model_len=CONTEXT)


def parameters(
    n: int, seed: int, max_tokens: int, penalty: float, prompt_logprobs: int | None = None
) -> SamplingParams:
    return SamplingParams(
        n=n,
        seed=seed,
        max_tokens=max_tokens,
        temperature=0.8 if seed else 0,
        frequency_penalty=penalty,
        prompt_logprobs=prompt_logprobs,
        stop_token_ids=[5],
    )


class SchedulerMachine(RuleBasedStateMachine):
    @initialize(
        block_size=st.sampled_from([1, 2, 4]),
        spare=st.integers(0, 4),
        chunk=st.integers(1, 6),
        batch=st.integers(4, 16),
        caching=st.booleans(),
    )
    def start(self, block_size: int, spare: int, chunk: int, batch: int, caching: bool) -> None:
        self.run = Run(
            max_model_len=CONTEXT,
            block_size=block_size,
            num_blocks=CONTEXT // block_size + spare,
            max_num_seqs=4,
            max_num_batched_tokens=batch,
            prefill_chunk=chunk,
            max_logit_rows=6,
            enable_prefix_caching=caching,
            max_waiting=6,
        )
        self.requests: dict[str, tuple[tuple[int, ...], int, int, int, float]] = {}
        self.aborted: set[tuple[str, int]] = set()

    @rule(
        prefix=st.integers(0, 12),
        tail=st.lists(st.integers(0, 30), min_size=1, max_size=6),
        n=st.sampled_from([1, 1, 1, 2, 3]),
        seed=st.integers(0, 2),
        max_tokens=st.integers(1, 12),
        penalty=st.sampled_from([0.0, 1.0]),
        priority=st.sampled_from([0, 0, -1]),
        salt=st.sampled_from(["", "", "x"]),
        prompt_logprobs=st.sampled_from([None, None, None, 1]),
    )
    def add(
        self,
        prefix: int,
        tail: list[int],
        n: int,
        seed: int,
        max_tokens: int,
        penalty: float,
        priority: int,
        salt: str,
        prompt_logprobs: int | None,
    ) -> None:
        name = str(len(self.requests))
        prompt = (*range(prefix), *tail)
        params = parameters(n, seed, max_tokens, penalty, prompt_logprobs)
        try:
            self.run.add(name, prompt, params, priority=priority, cache_salt=salt)
        except QueueFullError:
            assert self.run.engine.stats().num_waiting >= 6
            return
        self.requests[name] = (prompt, n, seed, max_tokens, penalty)

    @rule(steps=st.integers(1, 5))
    def step(self, steps: int) -> None:
        for _ in range(steps):
            unfinished = self.run.engine.has_unfinished
            before = len(self.run.runner.steps)
            self.run.step()
            assert (len(self.run.runner.steps) > before) == unfinished, "a step with work does work"

    @precondition(lambda self: self.requests)
    @rule(data=st.data(), in_flight=st.booleans())
    def abort(self, data: st.DataObject, in_flight: bool) -> None:
        name = data.draw(st.sampled_from(sorted(self.requests)))
        index = data.draw(st.none() | st.integers(0, self.requests[name][1] - 1))
        out = self.run.scheduler.schedule() if in_flight else None
        self.run.engine.abort(name, index)
        indices = range(self.requests[name][1]) if index is None else (index,)
        self.aborted |= {(name, each) for each in indices}
        if out:
            deltas = self.run.scheduler.update(out, self.run.runner.execute(out)) if out.rows else []
            assert not any((delta.request_id, delta.index) in self.aborted for delta in deltas)
            self.run.deltas += deltas

    @rule()
    def reset_prefix_cache(self) -> None:
        self.run.engine.reset_prefix_cache()

    @invariant()
    def adds_up(self) -> None:
        self.run.check()

    def teardown(self) -> None:
        self.run.finish()
        for name, request in self.requests.items():
            expected = reference(*request)
            for index in range(request[1]):
                said = self.run.tokens(name, index)
                if (name, index) in self.aborted:
                    assert said == expected[index][: len(said)]
                else:
                    assert said == expected[index]
                    assert self.run.reason(name, index) in ("stop", "length")
        self.run.engine.reset_prefix_cache()
        stats = self.run.engine.stats()
        assert (stats.kv_blocks_used, stats.kv_blocks_cached) == (0, 0)
        assert self.run.scheduler._pool.num_free == stats.kv_blocks_total


SchedulerMachine.TestCase.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
TestSchedulerMachine = SchedulerMachine.TestCase

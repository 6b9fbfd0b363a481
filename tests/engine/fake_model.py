"""A model without weights whose next token depends on its whole context, read back through the block table.

Its KV memory holds, per slot, the token and position written there. A wrong table, a missed copy, a block shared or
reused too early gives other context, hence other logits, hence other tokens.
"""

import hashlib
import time
from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from pllm.runtime.engine import Engine
from pllm.runtime.sampling import Sampler
from pllm.runtime.sampling_params import SamplingParams
from pllm.runtime.scheduler import Scheduler, SchedulerConfig
from pllm.runtime.sequence import Request
from pllm.runtime.step import SchedulerOutput, StepResult, TokenDelta

VOCAB = 32
EOS = 31


def logits_of(context: Iterable[int]) -> NDArray[np.float32]:
    """What the model says after a context: standard normal, fixed by the context's hash."""
    digest = hashlib.blake2b(repr(list(context)).encode(), digest_size=8).digest()
    return np.random.default_rng(int.from_bytes(digest, "little")).standard_normal(VOCAB).astype(np.float32) * 3


class FakeRunner:
    """A ModelRunner over the fake memory; checks each row as it goes. `broken` seq_ids yield NaN."""

    def __init__(self, config: SchedulerConfig) -> None:
        self.config = config
        self.memory = np.full((config.num_blocks, config.block_size, 2), -1, np.int64)  # token, position
        self.sampler = Sampler()
        self.steps: list[SchedulerOutput] = []
        self.broken: set[int] = set()
        self.num_tokens = 0

    def execute(self, out: SchedulerOutput) -> StepResult:
        self.steps.append(out)
        self._check(out)
        for source, target in out.copies:
            self.memory[target] = self.memory[source]
        size = self.config.block_size
        for row in out.rows:  # all write before any reads, as a program's layers do
            for position, token in enumerate(row.token_ids, row.start):
                self.memory[row.block_table[position // size], position % size] = token, position
        logits, samples, prompt = [], [], {}
        for row in out.rows:
            end = row.start + len(row.token_ids)
            stored = self.memory[list(row.block_table)].reshape(-1, 2)[:end]
            assert stored[:, 1].tolist() == list(range(end)), "a slot holds another position's token"
            context = stored[:, 0].tolist()
            if row.samples:
                logits.append(logits_of(context) * (np.nan if row.seq_id in self.broken else 1))
                samples.append(row.samples)
            if row.prompt_logprobs is not None:
                positions = range(row.start, row.start + len(row.prompt_targets))
                rows = [logits_of(context[: position + 1]) for position in positions]
                prompt[row.seq_id] = (
                    self.sampler.prompt_logprobs(np.stack(rows), row.prompt_targets, row.prompt_logprobs)
                    if rows
                    else ()
                )
        tokens = self.sampler.sample(np.stack(logits), samples) if logits else []
        return StepResult(tuple(tokens), prompt)

    def _check(self, out: SchedulerOutput) -> None:
        config = self.config
        new = [len(row.token_ids) for row in out.rows]
        self.num_tokens += sum(new)
        assert min(new) >= 1
        assert sum(new) <= config.max_num_batched_tokens
        assert len(out.rows) <= config.max_num_seqs
        logit_rows = sum(
            len(row.token_ids) if row.prompt_logprobs is not None else bool(row.samples) for row in out.rows
        )
        assert logit_rows <= config.max_logit_rows
        written: set[int] = set()
        for row in out.rows:
            end = row.start + len(row.token_ids)
            assert len(row.block_table) == -(-end // config.block_size), "the table covers exactly the tokens"
            target = set(row.block_table[row.start // config.block_size :])
            assert not target & written, "two rows write one block"
            written |= target
        for row in out.rows:
            read = set(row.block_table[: row.start // config.block_size])
            assert not read & written, "one row writes what another has"


def config(**changes: object) -> SchedulerConfig:
    """A big pool of small blocks, unless changed."""
    fields: dict[str, object] = {
        "max_num_seqs": 64,
        "max_num_batched_tokens": 256,
        "max_model_len": 64,
        "block_size": 4,
        "num_blocks": 2048,
        "prefill_chunk": 16,
        "max_logit_rows": 128,
        "vocab_size": VOCAB,
    }
    return SchedulerConfig(**(fields | changes))  # type: ignore[arg-type]


class Run:
    """An engine over the fake model, and everything it has said."""

    def __init__(self, **changes: object) -> None:
        self.config = config(**changes)
        self.scheduler = Scheduler(self.config)
        self.runner = FakeRunner(self.config)
        self.engine = Engine(self.scheduler, self.runner)
        self.deltas: list[TokenDelta] = []

    def add(self, name: str, prompt: Iterable[int], params: SamplingParams | None = None, **fields: object) -> None:
        params = SamplingParams(temperature=0) if params is None else params
        self.engine.submit(Request(name, tuple(prompt), params, (EOS,), time.monotonic(), **fields))  # type: ignore[arg-type]

    def step(self) -> list[TokenDelta]:
        deltas = self.engine.step()
        self.deltas.extend(deltas)
        self.check()
        return deltas

    def finish(self, limit: int = 5000) -> "Run":
        for _ in range(limit):
            if not self.engine.has_unfinished:
                stats = self.engine.stats()
                assert (stats.kv_blocks_used, stats.kv_tokens_held, stats.num_running, stats.num_waiting) == (
                    0,
                    0,
                    0,
                    0,
                )
                return self
            self.step()
            assert self.runner.steps, "unfinished requests, but nothing to do"
        raise AssertionError(f"not finished after {limit} steps")

    def tokens(self, name: str, index: int = 0) -> list[int]:
        return [token for delta in self._of(name, index) for token in delta.token_ids]

    def reason(self, name: str, index: int = 0) -> str | None:
        return self._of(name, index)[-1].finish_reason

    def _of(self, name: str, index: int) -> list[TokenDelta]:
        return [delta for delta in self.deltas if (delta.request_id, delta.index) == (name, index)]

    def check(self) -> None:
        """What holds between steps, whatever happened."""
        stats = self.engine.stats()
        pool = self.scheduler._pool
        assert pool.num_free + pool.num_cached + pool.num_used == pool.num_blocks
        assert stats.kv_blocks_used <= stats.kv_tokens_held <= stats.kv_blocks_used * self.config.block_size
        tables = [seq.block_table for seq in self.scheduler._running]
        filled: dict[int, int] = {}
        for seq in self.scheduler._running:
            for place, block in enumerate(seq.block_table):
                filled[block] = min(self.config.block_size, seq.num_computed_tokens - place * self.config.block_size)
        assert stats.kv_tokens_held == sum(filled.values())
        assert stats.kv_blocks_used == len(filled)
        holders = [
            sum(table.count(block) for table in tables) for block in range(pool.num_blocks if len(tables) < 9 else 0)
        ]
        assert not holders or holders == pool._holders
        assert not any(seq.block_table for seq in self.scheduler._waiting)


def alone(prompt: Iterable[int], params: SamplingParams | None = None, **changes: object) -> list[list[int]]:
    """What the request's n sequences say with nobody beside it: the reference for everything."""
    run = Run(**changes)
    run.add("alone", prompt, params)
    run.finish()
    return [run.tokens("alone", index) for index in range(params.n if params else 1)]

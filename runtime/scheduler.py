"""Who runs next. The only place that changes a Sequence or hands out blocks.

There is no prefill phase and no decode phase: in each step some sequences get some of their pending tokens computed,
and one that has none left gets a new token (vLLM v1's idea). Who runs goes on running, in order of (priority, arrival);
then who waits is admitted, in the same order, nobody past another. Blocks are allocated as tokens come; where they run
out, the last in order gives up its own and waits to compute its tokens again: the same tokens, since a draw depends on
nothing else.
"""

import time
from bisect import insort
from dataclasses import replace
from itertools import count
from operator import attrgetter

from pllm.runtime.block_pool import BlockPool
from pllm.runtime.errors import QueueFullError, RequestError
from pllm.runtime.prefix_cache import ROOT, chain_digests
from pllm.runtime.scheduler_config import SchedulerConfig
from pllm.runtime.sequence import FinishReason, Request, Sequence, sequences_of
from pllm.runtime.step import (
    Grammar,
    SampledToken,
    ScheduledRow,
    SchedulerOutput,
    SchedulerStats,
    StepResult,
    TokenDelta,
)

__all__ = ["Scheduler", "SchedulerConfig"]

in_order = attrgetter("order")


class _Budget:
    """What is left of a step for prompts, once every decoding sequence has its token."""

    def __init__(self, config: SchedulerConfig, num_decodes: int, max_prompt_tokens: int | None) -> None:
        tokens = config.max_num_batched_tokens - num_decodes
        if num_decodes:
            tokens = min(tokens, config.prefill_chunk)
        bounds = (tokens, config.max_prefill_tokens, max_prompt_tokens)
        self.tokens = min(bound for bound in bounds if bound is not None)
        self.logit_rows = config.max_logit_rows - num_decodes

    def take(self, seq: Sequence) -> int:
        """How many of the sequence's pending tokens this step computes; 0 where there is no room."""
        num = min(seq.num_pending, self.tokens)
        if seq.wants_prompt_logprobs:
            num = min(num, self.logit_rows)
            self.logit_rows -= num
        elif num == seq.num_pending and self.logit_rows:
            self.logit_rows -= 1
        elif num == seq.num_pending:
            num -= 1  # its last token would sample, and there is no row of logits left to sample from
        self.tokens -= num
        return num


class Scheduler:
    """Holds all unfinished requests. `schedule()` and `update()` alternate; `add` and `abort` may come at any time."""

    def __init__(self, config: SchedulerConfig) -> None:
        self.config = config
        self._pool = BlockPool(config.num_blocks, config.block_size)
        self._requests: dict[str, list[Sequence]] = {}  # the unfinished sequences of each
        self._waiting: list[Sequence] = []  # both in order; waiting sequences hold no blocks
        self._running: list[Sequence] = []
        self._in_flight: dict[int, Sequence] = {}  # by seq_id, from schedule() to update()
        self._seq_ids = count()
        self._prefix_cache_queries = 0
        self._prefix_cache_hits = 0
        self._num_preemptions = 0
        self._prompt_tokens_computed = 0

    @property
    def has_unfinished(self) -> bool:
        return bool(self._requests)

    def add(self, request: Request, grammar: Grammar | None = None) -> None:
        """Queue a request, whose answers keep to ``grammar``.

        Raises RequestError for one that could never run, QueueFullError where too many wait.
        """
        if request.request_id in self._requests:
            raise RequestError(f"A request with the id {request.request_id!r} is not finished yet", param="request_id")
        self.config.check(request)
        if len(self._waiting) >= self.config.max_waiting + self.config.max_num_seqs - self._num_slots():
            raise QueueFullError(f"{len(self._waiting)} requests are waiting already: come back later")
        sequences = sequences_of(request, self._seq_ids, grammar)
        self._requests[request.request_id] = sequences
        insort(self._waiting, sequences[0], key=in_order)

    def abort(self, request_id: str, index: int | None = None) -> None:
        """End a request, or one of its n sequences, without a delta. Its blocks are free at once, or, where the model
        runner is at work on them, at update(). An unknown id is passed over: the request may just have ended by itself.
        """
        sequences = self._requests.get(request_id, [])
        for seq in sequences:
            if index in (None, seq.index):
                seq.finished = True
        for seq in tuple(sequences):
            if not seq.num_slots and seq.seq_id not in self._in_flight:
                self._release(seq)

    def reset_prefix_cache(self) -> None:
        """Forget all cached prefixes; running sequences keep what they hold."""
        self._pool.reset_prefixes()

    def schedule(self, max_prompt_tokens: int | None = None) -> SchedulerOutput:
        """Decide the next step, which computes at most so many tokens of prompts. No rows: there is nothing to do."""
        assert not self._in_flight, "schedule() before the last step's update()"
        num_decodes = sum(seq.num_pending == 1 for seq in self._running)
        budget = _Budget(self.config, num_decodes, max_prompt_tokens)
        rows: list[ScheduledRow] = []
        copies: list[tuple[int, int]] = []

        # Who runs, first come first served. A decoding sequence always gets its token: the budget has set it aside.
        # Where blocks run out the last in order, not yet in this step, gives up its own: perhaps the very one in turn.
        turn = 0
        while turn < len(self._running):
            seq = self._running[turn]
            num = 1 if seq.num_pending == 1 else budget.take(seq)
            if num and self._make_room(seq, num):
                rows.append(self._launch(seq, num, copies))
            turn += 1

        # Who waits, in the same order. One that does not fit holds up those behind it, or it might wait for ever.
        while self._waiting:
            seq = self._waiting[0]
            num = self._admit(seq, budget)
            if not num:
                break
            rows.append(self._launch(seq, num, copies))
        if self.config.lookahead_tokens:
            rows = [self._reach_ahead(row) for row in rows]
        return SchedulerOutput(tuple(rows), tuple(copies))

    def update(self, out: SchedulerOutput, result: StepResult) -> list[TokenDelta]:
        """Take in what a step came to. Sequences that were aborted meanwhile give no delta."""
        sampled = {token.seq_id: token for token in result.tokens}
        deltas: list[TokenDelta] = []
        for row in out.rows:
            seq = self._in_flight.pop(row.seq_id)
            seq.num_computed_tokens += len(row.token_ids)
            self._prompt_tokens_computed += max(0, min(seq.num_computed_tokens, seq.num_prompt_tokens) - row.start)
            if seq.prompt_logprobs is not None:
                seq.prompt_logprobs.extend(result.prompt_logprobs[row.seq_id])
            if not any(sampled[spec.seq_id].error for spec in row.samples):
                self._commit(seq)
            members = (seq, *seq.forks) if row.samples else ()
            if row.samples:
                self._split(seq)
            if not seq.num_slots:
                self._release(seq)
            deltas.extend(self._advance(each, sampled[each.seq_id]) for each in members if not each.finished)
        return deltas

    def stats(self) -> SchedulerStats:
        pool = self._pool
        # Only last blocks have slots to spare; one that is shared is counted once.
        spare = {
            seq.block_table[-1]: len(seq.block_table) * pool.block_size - seq.num_computed_tokens
            for seq in self._running
            if seq.block_table
        }
        return SchedulerStats(
            num_running=len(self._running),
            num_waiting=len(self._waiting),
            kv_blocks_total=pool.num_blocks,
            kv_blocks_used=pool.num_used,
            kv_blocks_cached=pool.num_cached,
            kv_tokens_held=pool.num_used * pool.block_size - sum(spare.values()),
            prefix_cache_queries=self._prefix_cache_queries,
            prefix_cache_hits=self._prefix_cache_hits,
            num_preemptions=self._num_preemptions,
            prompt_tokens_computed=self._prompt_tokens_computed,
        )

    def _num_slots(self) -> int:
        return sum(seq.num_slots for seq in self._running)

    def _admit(self, seq: Sequence, budget: _Budget) -> int:
        """Move a waiting sequence to the running ones; returns how many tokens it computes now, 0 if it must wait."""
        if self._num_slots() + seq.num_slots > self.config.max_num_seqs:
            return 0
        table = self._find_prefix(seq)
        self._pool.fork(table)
        seq.block_table = table
        seq.num_computed_tokens = len(table) * self._pool.block_size
        # It is not enough that the first chunk fits: a prompt that stops half-way would be preempted and start again.
        # (At most one prompt is ever half-way, the last that took from the budget: no sum over others is needed.)
        fits = self._pool.missing(table, len(seq.token_ids)) <= self._pool.num_available
        num = budget.take(seq) if fits else 0
        if not num:
            self._pool.free(table)
            seq.forget_computed()
            return 0
        if seq.num_cached_tokens is None:  # admitted for the first time: later it would find its own
            seq.first_scheduled_time = time.monotonic()
            seq.num_cached_tokens = seq.num_computed_tokens
            self._prefix_cache_queries += seq.num_prompt_tokens
            self._prefix_cache_hits += seq.num_cached_tokens
        self._waiting.remove(seq)
        insort(self._running, seq, key=in_order)
        return num

    def _make_room(self, seq: Sequence, num: int) -> bool:
        """Preempt from the end until the sequence's next tokens have blocks; False where it came to itself."""
        end = seq.num_computed_tokens + num
        while not self._pool.can_extend(seq.block_table, seq.num_computed_tokens, end):
            victim = self._running.pop()
            self._pool.free(victim.block_table)
            victim.forget_computed()
            insort(self._waiting, victim, key=in_order)
            self._num_preemptions += 1
            if victim is seq:
                return False
        return True

    def _launch(self, seq: Sequence, num: int, copies: list[tuple[int, int]]) -> ScheduledRow:
        """The sequence's row of this step, its blocks allocated."""
        start, end = seq.num_computed_tokens, seq.num_computed_tokens + num
        copies.extend(self._pool.extend(seq.block_table, start, end))
        self._in_flight[seq.seq_id] = seq
        completes = end == len(seq.token_ids)
        return ScheduledRow(
            seq_id=seq.seq_id,
            start=start,
            token_ids=seq.token_ids[start:end],
            block_table=seq.block_table.copy(),
            samples=tuple(each.spec for each in (seq, *seq.forks) if not each.finished) if completes else (),
            prompt_logprobs=seq.request.params.prompt_logprobs if seq.wants_prompt_logprobs else None,
            prompt_targets=seq.token_ids[start + 1 : end + 1] if seq.wants_prompt_logprobs else (),
        )

    def _reach_ahead(self, row: ScheduledRow) -> ScheduledRow:
        """The row with the block that its sequence's next token needs, if there is a free one: nobody gives anything up
        for it. For a model runner that launches the next token before it knows this one."""
        seq, end = self._in_flight[row.seq_id], row.start + len(row.token_ids)
        reach = min(end + self.config.lookahead_tokens, self.config.max_model_len)
        if len(row.samples) != 1 or not self._pool.num_free or self._pool.missing(seq.block_table, reach) < 1:
            return row
        self._pool.extend(seq.block_table, end, reach)
        return replace(row, block_table=seq.block_table.copy())

    def _split(self, seq: Sequence) -> None:
        """The prompt of a request with n > 1 is complete: its other sequences go their own ways."""
        for fork in seq.forks:
            if not fork.finished:
                fork.split_from(seq)
                self._pool.fork(fork.block_table)
                insort(self._running, fork, key=in_order)
        seq.forks = []

    def _advance(self, seq: Sequence, token: SampledToken) -> TokenDelta:
        """Append the token, and end the sequence where it was its last."""
        if token.error is None:
            seq.append(token.token_id)
            reason, stop_reason = self._end_of(seq)
        else:
            reason, stop_reason = FinishReason.ERROR, None
            # What went wrong may lie in its keys and values: nobody shall find them.
            for block in seq.block_table[(seq.num_cached_tokens or 0) // self._pool.block_size :]:
                self._pool.forget(block)
        delta = TokenDelta(
            request_id=seq.request.request_id,
            index=seq.index,
            token_ids=[token.token_id] if token.error is None else [],
            logprobs=[token.logprobs] if token.logprobs else None,
            finish_reason=None if reason is None else reason.value,
            stop_reason=stop_reason,
            num_cached_tokens=seq.num_cached_tokens or 0,
            prompt_logprobs=seq.prompt_logprobs,
            error=token.error,
            first_scheduled_time=seq.first_scheduled_time,
        )
        seq.prompt_logprobs = seq.first_scheduled_time = None  # handed out
        if reason:
            seq.finished = True
            self._release(seq)
        return delta

    def _end_of(self, seq: Sequence) -> tuple[FinishReason | None, int | None]:
        """Why the sequence ends with its last token, if it does. (The sampler keeps min_tokens.)"""
        params, token_id = seq.request.params, seq.token_ids[-1]
        # Where a form is complete only an end token can follow, again and again: it ends there, wanted or not.
        if token_id in seq.request.eos_token_ids and (not params.ignore_eos or seq.spec.matcher is not None):
            return FinishReason.STOP, None
        if token_id in params.stop_token_ids:
            return FinishReason.STOP, token_id
        if len(seq.output_token_ids) == params.max_tokens or len(seq.token_ids) >= self.config.max_model_len:
            return FinishReason.LENGTH, None
        return None, None

    def _release(self, seq: Sequence) -> None:
        """The sequence is finished, and none will split off from it: forget it, and free what it holds."""
        for queue in (self._running, self._waiting):
            if seq in queue:
                queue.remove(seq)
        self._pool.free(seq.block_table)
        seq.block_table = []
        sequences = self._requests[seq.request.request_id]
        sequences.remove(seq)
        if not sequences:
            del self._requests[seq.request.request_id]

    def _find_prefix(self, seq: Sequence) -> list[int]:
        """Cached blocks that hold the sequence's beginning; never its last token, whose logits are needed."""
        table: list[int] = []
        if not self.config.enable_prefix_caching or seq.wants_prompt_logprobs:
            return table
        size = self._pool.block_size
        full = (len(seq.token_ids) - 1) // size
        chain_digests(seq.digests, seq.token_ids, size, full, seq.request.cache_salt)
        for index in range(full):
            parent = table[-1] if table else ROOT
            block = self._pool.find(seq.digests[index], parent, seq.token_ids[index * size : (index + 1) * size])
            if block is None:
                break
            table.append(block)
        return table

    def _commit(self, seq: Sequence) -> None:
        """Enter the blocks that have become full, now that they are computed, into the prefix cache."""
        size, table = self._pool.block_size, seq.block_table
        full = seq.num_computed_tokens // size
        if not self.config.enable_prefix_caching or full == seq.num_committed_blocks:
            return
        chain_digests(seq.digests, seq.token_ids, size, full, seq.request.cache_salt)
        for index in range(seq.num_committed_blocks, full):
            parent = table[index - 1] if index else ROOT
            tokens = seq.token_ids[index * size : (index + 1) * size]
            table[index] = self._pool.commit(table[index], seq.digests[index], parent, tokens)
        seq.num_committed_blocks = full

"""What crosses between the scheduler, the model runner and the outside in one step. All of it is frozen.

Scheduler.schedule() -> SchedulerOutput
ModelRunner.execute(SchedulerOutput) -> StepResult
Scheduler.update(SchedulerOutput, StepResult) -> list[TokenDelta]
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

import msgspec

from pllm.runtime.sampling_params import SamplingParams

__all__ = [
    "GRAMMAR_FAILED",
    "Grammar",
    "GrammarFailedError",
    "SampleSpec",
    "SampledToken",
    "ScheduledRow",
    "SchedulerOutput",
    "SchedulerStats",
    "StepResult",
    "TokenDelta",
    "TokenLogprobs",
    "TokenMatcher",
]


GRAMMAR_FAILED = "The grammar failed on this answer"
"""How the error of a sequence begins whose grammar could not go on: its request's fault, not the model's."""


class GrammarFailedError(Exception):
    """A sequence's grammar cannot go on: what it has cost, or a token that it does not allow. The sequence ends."""


class TokenMatcher(Protocol):
    """Follows one sequence through its grammar (`pllm.runtime.grammar.GrammarMatcher`)."""

    def allowed(self, output_token_ids: Sequence[int]) -> bytes:
        """The tokens that may follow, a bit each, the lowest id in a byte's lowest bit. Raises GrammarFailedError."""

    @property
    def is_complete(self) -> bool:
        """Nothing but an end token may follow what was last asked about."""


class Grammar(Protocol):
    """A compiled form of answers (`pllm.runtime.grammar.Grammar`)."""

    def matcher(self) -> TokenMatcher: ...


@dataclass(frozen=True, slots=True)
class SampleSpec:
    """How one sequence's next token is chosen.

    One spec serves a sequence all its life: `output_token_ids` is the engine's own list, which grows by a token after
    each `update()`, so that no step copies a history that it seldom needs. It is read during `execute()` only.
    """

    seq_id: int
    params: SamplingParams
    prompt_token_ids: Sequence[int]
    output_token_ids: Sequence[int]
    seed: int  # the sequence's own; a draw is a function of (seed, len(output_token_ids)) and the logits, nothing else
    eos_token_ids: tuple[int, ...] = ()
    bad_words_token_ids: tuple[tuple[int, ...], ...] = ()
    matcher: TokenMatcher | None = None  # the sequence's own; it catches up with `output_token_ids` when it is asked


@dataclass(frozen=True, slots=True)
class ScheduledRow:
    """One sequence's part of a step: some of its tokens go through the model."""

    seq_id: int
    start: int  # tokens already in the KV cache, hence the first new token's position
    token_ids: Sequence[int]  # the new tokens, at least one
    block_table: Sequence[int]  # KV block ids covering start + len(token_ids) tokens, and no block more, or one ahead
    # All drawn from the last token's logits: () while the prompt is incomplete, one as a rule, n where the prompt of a
    # request with n > 1 completes.
    samples: tuple[SampleSpec, ...]
    # Not None: logits are needed at every new token, with this many alternatives for each of prompt_targets: the prompt
    # tokens at positions start + 1, start + 2, ...; as many as token_ids, or one less where the prompt completes.
    prompt_logprobs: int | None = None
    prompt_targets: Sequence[int] = ()


@dataclass(frozen=True, slots=True)
class SchedulerOutput:
    """One step's work. `copies` are (source, target) KV block ids, carried out one after another BEFORE any row."""

    rows: tuple[ScheduledRow, ...]
    copies: tuple[tuple[int, int], ...] = ()


@dataclass(frozen=True, slots=True)
class TokenLogprobs:
    """A token's log probability under the raw logits: before temperature, penalties and masks."""

    token_id: int
    logprob: float  # natural logarithm
    rank: int  # 1 is the most likely; ties go to the lower token id
    top: tuple[tuple[int, float, int], ...]  # the most likely (token_id, logprob, rank), in order of rank


@dataclass(frozen=True, slots=True)
class SampledToken:
    """What one SampleSpec came to. With `error` the token means nothing: this sequence alone has failed."""

    seq_id: int
    token_id: int
    logprobs: TokenLogprobs | None = None
    error: str | None = None


@dataclass(frozen=True, slots=True)
class StepResult:
    """What a step came to: one SampledToken per SampleSpec of its rows."""

    tokens: tuple[SampledToken, ...]
    # By seq_id, for rows with prompt_logprobs: one for each of their prompt_targets.
    prompt_logprobs: dict[int, tuple[TokenLogprobs, ...]] = field(default_factory=dict)


class TokenDelta(msgspec.Struct, frozen=True, omit_defaults=True):
    """What is new in one sequence of a request. Crosses to the API process.

    A sequence's last delta is the one with a finish_reason. An aborted sequence gets none: who aborts it knows.
    """

    request_id: str
    index: int  # of the request's n sequences
    token_ids: list[int]  # since the last delta; the end-of-sequence or stop token included
    logprobs: list[TokenLogprobs] | None = None  # as long as token_ids
    finish_reason: str | None = None  # a FinishReason
    stop_reason: int | str | None = None  # the stop token's id; None where the end-of-sequence token ended it
    num_cached_tokens: int = 0  # prompt tokens that were found in the prefix cache
    prompt_logprobs: list[TokenLogprobs] | None = None  # on index 0's first delta: for all prompt tokens but the first
    error: str | None = None
    # On a sequence's first delta: when its request was first scheduled, in seconds of time.monotonic(), which all
    # processes of a machine share.
    first_scheduled_time: float | None = None


class SchedulerStats(msgspec.Struct, frozen=True):
    """Gauges at this moment and counters since the start."""

    num_running: int  # sequences
    num_waiting: int  # requests, and sequences that were preempted
    kv_blocks_total: int  # total = used + cached + free
    kv_blocks_used: int  # held by a sequence
    kv_blocks_cached: int  # held by none, kept for their contents until the space is wanted
    kv_tokens_held: int  # tokens in used blocks, a shared block counted once
    prefix_cache_queries: int  # prompt tokens looked up
    prefix_cache_hits: int  # prompt tokens found
    num_preemptions: int
    prompt_tokens_computed: int  # prompt tokens that went through the model, again after a preemption too

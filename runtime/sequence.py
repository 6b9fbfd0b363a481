"""Request (the client's, frozen) and Sequence (the engine's, mutable)."""

import os
from collections.abc import Iterable
from enum import StrEnum

import msgspec

from pllm.runtime.random_stream import sequence_seed
from pllm.runtime.sampling_params import SamplingParams
from pllm.runtime.step import Grammar, SampleSpec, TokenLogprobs

__all__ = ["FinishReason", "Request", "Sequence", "sequences_of"]


class FinishReason(StrEnum):
    """Why a sequence ended, as clients see it."""

    STOP = "stop"
    LENGTH = "length"
    ABORT = "abort"
    ERROR = "error"


class Request(msgspec.Struct, frozen=True):
    """One prompt and how to continue it."""

    request_id: str
    prompt_token_ids: tuple[int, ...]
    params: SamplingParams
    eos_token_ids: tuple[int, ...]
    arrival_time: float  # time.monotonic(), seconds
    cache_salt: str = ""  # requests share cached prefixes only where their salts are equal
    priority: int = 0  # lower runs first
    bad_words_token_ids: tuple[tuple[int, ...], ...] = ()  # params.bad_words, tokenised


class Sequence:
    """One continuation of a request's prompt. Only the scheduler changes it.

    The one rule: computed tokens catch up with tokens. `num_pending` of them are left; when none would be, the step
    samples, and the new token is pending in turn. Prompt, decode and recomputation after a preemption are all this.
    """

    __slots__ = (
        "block_table",
        "digests",
        "finished",
        "first_scheduled_time",
        "forks",
        "index",
        "num_cached_tokens",
        "num_committed_blocks",
        "num_computed_tokens",
        "num_prompt_tokens",
        "order",
        "output_token_ids",
        "prompt_logprobs",
        "request",
        "seq_id",
        "spec",
        "token_ids",
    )

    def __init__(self, request: Request, seq_id: int, index: int, seed: int, grammar: Grammar | None = None) -> None:
        self.seq_id = seq_id
        self.request = request
        self.index = index
        self.order = (request.priority, seq_id)  # who runs first, and is preempted last
        self.token_ids = list(request.prompt_token_ids)  # prompt and output
        self.output_token_ids: list[int] = []
        self.num_prompt_tokens = len(self.token_ids)
        self.spec = SampleSpec(
            seq_id,
            request.params,
            request.prompt_token_ids,
            self.output_token_ids,
            seed,
            request.eos_token_ids,
            request.bad_words_token_ids,
            None if grammar is None else grammar.matcher(),
        )

        self.num_computed_tokens = 0  # in the KV cache
        self.block_table: list[int] = []  # covers num_computed_tokens; in a step, those of the step too
        self.digests: list[bytes] = []  # of the leading full blocks, as far as anyone asked
        self.num_committed_blocks = 0  # leading blocks that were offered to the prefix cache
        self.num_cached_tokens: int | None = None  # found in the prefix cache; None until first admitted
        self.first_scheduled_time: float | None = None  # time.monotonic(); None until then, and once handed out

        # With n > 1 the first sequence computes the prompt for all; these split off where it completes.
        self.forks: list[Sequence] = []
        self.prompt_logprobs: list[TokenLogprobs] | None = None if request.params.prompt_logprobs is None else []
        self.finished = False

    @property
    def num_pending(self) -> int:
        """Tokens that are not in the KV cache yet, at least one."""
        return len(self.token_ids) - self.num_computed_tokens

    @property
    def num_slots(self) -> int:
        """Sequences that this one is, or will become when its prompt completes. 0: nobody waits for it."""
        return (not self.finished) + sum(not fork.finished for fork in self.forks)

    @property
    def wants_prompt_logprobs(self) -> bool:
        """They were asked for and have not been handed out yet."""
        return self.prompt_logprobs is not None

    def append(self, token_id: int) -> None:
        """A new token, pending."""
        self.token_ids.append(token_id)
        self.output_token_ids.append(token_id)

    def split_from(self, parent: "Sequence") -> None:
        """Take over what the parent has computed. The blocks are shared: each has one more holder."""
        self.block_table = parent.block_table.copy()
        self.digests = parent.digests.copy()
        self.num_computed_tokens = parent.num_computed_tokens
        self.num_committed_blocks = parent.num_committed_blocks
        self.num_cached_tokens = parent.num_cached_tokens
        self.first_scheduled_time = parent.first_scheduled_time
        self.prompt_logprobs = None  # they are the request's, and go out with its first sequence

    def forget_computed(self) -> None:
        """Start again from the first token: the blocks are gone."""
        self.block_table = []
        self.num_computed_tokens = 0
        self.num_committed_blocks = 0
        if self.prompt_logprobs is not None:
            self.prompt_logprobs = []


def sequences_of(request: Request, seq_ids: Iterable[int], grammar: Grammar | None = None) -> list[Sequence]:
    """The request's n sequences; the first carries the others as its forks.

    Each draws from a stream of its own, derived from the request's seed and its index. Without a seed one is taken
    from the operating system here, once: whatever happens to the request later, its draws are settled.
    """
    params = request.params
    seed = int.from_bytes(os.urandom(8), "little") if params.seed is None else params.seed
    sequences = [
        Sequence(request, seq_id, index, sequence_seed(seed, index), grammar)
        for index, seq_id in zip(range(params.n), seq_ids, strict=False)
    ]
    sequences[0].forks = sequences[1:]
    return sequences

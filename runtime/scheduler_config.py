"""The scheduler's limits, and which requests can never be served within them."""

from dataclasses import dataclass

from pllm.runtime.errors import ContextLengthExceededError, DoesNotFitError, RequestError, UserInputError
from pllm.runtime.sequence import Request

__all__ = ["LOGIT_ROWS", "SchedulerConfig"]

LOGIT_ROWS = 64
"""A step's rows of logits, at least: prompts whose every token needs its logits advance by this many."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SchedulerConfig:
    """The step's limits and the pool's size, all decided before the first request."""

    max_num_seqs: int  # sequences that run at once
    max_num_batched_tokens: int  # new tokens in one step
    max_model_len: int  # tokens in one sequence, prompt and output
    block_size: int  # token slots in a KV block
    num_blocks: int
    prefill_chunk: int  # prompt tokens in one step, of all sequences together, while any sequence decodes
    max_prefill_tokens: int | None = None  # prompt tokens in one step, whoever else runs; None: as many as fit
    max_logit_rows: int  # token positions in one step whose logits are computed
    vocab_size: int  # token ids are below this: the model looks them up unchecked
    enable_prefix_caching: bool = True
    lookahead_tokens: int = 0  # a sequence's blocks reach so far beyond its step, where blocks are free: 0 or 1
    max_waiting: int = 1024  # requests that wait beyond those that can run at once

    def __post_init__(self) -> None:
        slots = self.num_blocks * self.block_size
        if slots < self.max_model_len:
            raise DoesNotFitError(
                f"The KV cache holds {slots} tokens ({self.num_blocks} blocks of {self.block_size}), fewer than "
                f"max_model_len = {self.max_model_len}. Give it more memory, or lower max_model_len to {slots}."
            )
        for name in ("max_num_seqs", "block_size", "prefill_chunk", "vocab_size"):
            if getattr(self, name) < 1:
                raise UserInputError(f"{name} must be at least 1, got {getattr(self, name)}")
        for name in ("max_num_batched_tokens", "max_logit_rows"):
            if getattr(self, name) < self.max_num_seqs:
                raise UserInputError(
                    f"{name} = {getattr(self, name)} must be at least max_num_seqs = {self.max_num_seqs}: "
                    "every running sequence may need a token in the same step"
                )

    def check(self, request: Request) -> None:
        """Raises RequestError for a request that could not run even alone.

        A prompt that passes fits the pool: it is shorter than max_model_len, and the pool holds that many tokens.
        """
        params, prompt = request.params, request.prompt_token_ids
        if not prompt:
            raise RequestError("The prompt is empty: give it at least one token", param="prompt")
        if len(prompt) >= self.max_model_len:
            raise ContextLengthExceededError(self.max_model_len, len(prompt))
        for name, ids in (
            ("prompt", prompt),
            ("logit_bias", params.logit_bias or ()),
            ("allowed_token_ids", params.allowed_token_ids or ()),
        ):
            if ids and not (min(ids) >= 0 and max(ids) < self.vocab_size):
                raise RequestError(
                    f"{name} holds a token id outside of the vocabulary, 0 to {self.vocab_size - 1}", param=name
                )
        if params.n > self.max_num_seqs:
            raise RequestError(
                f"n = {params.n} is more sequences than run at once here (max_num_seqs = {self.max_num_seqs})",
                param="n",
            )

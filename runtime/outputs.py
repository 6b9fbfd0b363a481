"""What a finished (or growing) request looks like to the user of the library. The shapes are vLLM's."""

from dataclasses import dataclass, field

__all__ = ["CompletionOutput", "Logprob", "RequestMetrics", "RequestOutput", "TokenLogprobDict"]


@dataclass(slots=True)
class Logprob:
    """One token's log-probability (natural logarithm, before temperature and penalties).

    ``rank`` is 1 for the likeliest token; ``decoded_token`` is the token's own text, where a token that is only part
    of a character reads U+FFFD.
    """

    logprob: float
    rank: int | None = None
    decoded_token: str | None = None


TokenLogprobDict = dict[int, Logprob]
"""One position: the token there first, then the likeliest tokens, by token id."""


@dataclass(slots=True)
class CompletionOutput:
    """One of the ``n`` answers to a prompt. ``cumulative_logprob`` and ``logprobs`` are None unless asked for.

    ``finish_reason`` is "stop", "length", "abort" or "error", and None while the answer still grows. ``stop_reason``
    is the stop string or the stop token id that ended it, and None when it ended with the model's own end token.
    """

    index: int
    text: str
    token_ids: list[int]
    cumulative_logprob: float | None = None
    logprobs: list[TokenLogprobDict] | None = None
    finish_reason: str | None = None
    stop_reason: int | str | None = None

    def finished(self) -> bool:
        """True once nothing will be added to this answer."""
        return self.finish_reason is not None


@dataclass(slots=True)
class RequestMetrics:
    """When things happened to a request, in seconds of ``time.monotonic``."""

    arrival_time: float
    first_scheduled_time: float | None = None
    first_token_time: float | None = None
    last_token_time: float | None = None
    finished_time: float | None = None

    @property
    def time_to_first_token(self) -> float | None:
        """Seconds from arrival to the first token, None before it."""
        return None if self.first_token_time is None else self.first_token_time - self.arrival_time

    @property
    def time_in_queue(self) -> float | None:
        """Seconds from arrival to the first step that computed some of the prompt, None before it."""
        return None if self.first_scheduled_time is None else self.first_scheduled_time - self.arrival_time


@dataclass(slots=True)
class RequestOutput:
    """A prompt and its answers. ``prompt`` is None where the prompt was given as token ids.

    ``prompt_logprobs``: one entry a prompt token, None for the first (nothing precedes it).
    """

    request_id: str
    prompt: str | None
    prompt_token_ids: list[int]
    prompt_logprobs: list[TokenLogprobDict | None] | None = None
    outputs: list[CompletionOutput] = field(default_factory=list)
    finished: bool = False
    metrics: RequestMetrics | None = None
    num_cached_tokens: int | None = None

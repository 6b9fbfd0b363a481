"""A request's answers as text: token deltas from the engine in, text deltas and finally a RequestOutput out."""

import time
from dataclasses import dataclass

from pllm.runtime.detokenizer import SequenceText
from pllm.runtime.outputs import CompletionOutput, Logprob, RequestMetrics, RequestOutput, TokenLogprobDict
from pllm.runtime.sequence import Request
from pllm.runtime.step import TokenDelta, TokenLogprobs
from pllm.runtime.tokenizer import Tokenizer

__all__ = ["RequestText", "TextDelta"]


@dataclass(frozen=True, slots=True)
class TextDelta:
    """What one step added to one answer.

    ``text`` may be empty while ``token_ids`` are not: half a character, or what may become a stop string. ``logprobs``
    has one entry a token id; ``Tokenizer.token_bytes`` gives a token's bytes. ``ended_by_text``: a stop string ended
    this answer, which the engine cannot see: abort ``(request_id, index)`` there.
    """

    request_id: str
    index: int
    text: str
    token_ids: list[int]
    logprobs: list[TokenLogprobDict] | None = None
    finish_reason: str | None = None
    stop_reason: int | str | None = None
    ended_by_text: bool = False
    error: str | None = None


class RequestText:
    """The answers to one request while they grow.

    ``prompt``: the prompt's text, None where it was given as ids. ``continues``: the answer goes on in the prompt's
    last line (a completion), so that prompt + answer is the text; False where it begins anew (a chat's message).
    """

    def __init__(
        self, request: Request, tokenizer: Tokenizer, prompt: str | None = None, *, continues: bool = True
    ) -> None:
        self.request = request
        self.prompt = prompt
        self.prompt_logprobs: list[TokenLogprobDict | None] | None = None
        self.num_cached_tokens: int | None = None
        self.metrics = RequestMetrics(arrival_time=request.arrival_time)
        self._tokenizer = tokenizer
        params = request.params
        if continues:
            skipped = tokenizer.special_ids if params.skip_special_tokens else frozenset()
            continues = any(token_id not in skipped for token_id in reversed(request.prompt_token_ids))
        self._answers = [_Answer(i, SequenceText(tokenizer, params, continues=continues)) for i in range(params.n)]

    @property
    def finished(self) -> bool:
        """True once every answer is."""
        return not self.num_unfinished

    @property
    def num_unfinished(self) -> int:
        """Answers that are not complete."""
        return sum(answer.finish_reason is None for answer in self._answers)

    def feed(self, delta: TokenDelta) -> TextDelta | None:
        """Take a delta of this request; None when its answer was over already (the engine had not heard of it yet)."""
        answer = self._answers[delta.index]
        if answer.finish_reason is not None:
            return None
        now = time.monotonic()
        if delta.token_ids:
            self.metrics.first_token_time = self.metrics.first_token_time or now
            self.metrics.last_token_time = now
        if self.metrics.first_scheduled_time is None:
            self.metrics.first_scheduled_time = delta.first_scheduled_time
        if self.num_cached_tokens is None:
            self.num_cached_tokens = delta.num_cached_tokens
        if delta.prompt_logprobs is not None:
            self.prompt_logprobs = [None, *map(self._logprobs, delta.prompt_logprobs)]
        logprobs = None if delta.logprobs is None else [self._logprobs(entry) for entry in delta.logprobs]
        text = answer.feed(delta, logprobs)
        if self.finished:
            self.metrics.finished_time = now
        return text

    def output(self) -> RequestOutput:
        """All answers so far, as the library returns them."""
        return RequestOutput(
            request_id=self.request.request_id,
            prompt=self.prompt,
            prompt_token_ids=list(self.request.prompt_token_ids),
            prompt_logprobs=self.prompt_logprobs,
            outputs=[answer.output() for answer in self._answers],
            finished=self.finished,
            metrics=self.metrics,
            num_cached_tokens=self.num_cached_tokens,
        )

    @property
    def num_output_tokens(self) -> int:
        """Tokens of all answers so far."""
        return sum(len(answer.token_ids) for answer in self._answers)

    def _logprobs(self, entry: TokenLogprobs) -> TokenLogprobDict:
        text = self._tokenizer.token_text
        position = {entry.token_id: Logprob(entry.logprob, entry.rank, text(entry.token_id))}
        for token_id, logprob, rank in entry.top:
            position.setdefault(token_id, Logprob(logprob, rank, text(token_id)))
        return position


class _Answer:
    """One of the n answers."""

    def __init__(self, index: int, text: SequenceText) -> None:
        self.index = index
        self.token_ids: list[int] = []
        self.finish_reason: str | None = None
        self._stop_reason: int | str | None = None
        self._text = text
        self._shown: list[str] = []
        self._logprobs: list[TokenLogprobDict] = []

    def feed(self, delta: TokenDelta, logprobs: list[TokenLogprobDict] | None) -> TextDelta:
        known = self._text.num_tokens
        text = self._text.feed(
            delta.token_ids,
            final=delta.finish_reason is not None,
            ends_with_stop_token=delta.finish_reason == "stop",
        )
        stopped_by = self._text.stopped_by
        used = self._text.num_tokens - known
        token_ids = delta.token_ids[:used]
        if logprobs is not None:
            logprobs = logprobs[:used]
            self._logprobs.extend(logprobs)
        self.token_ids += token_ids
        self._shown.append(text)
        if stopped_by is not None:
            self.finish_reason, self._stop_reason = "stop", stopped_by
        else:
            self.finish_reason, self._stop_reason = delta.finish_reason, delta.stop_reason
        return TextDelta(
            request_id=delta.request_id,
            index=self.index,
            text=text,
            token_ids=token_ids,
            logprobs=logprobs,
            finish_reason=self.finish_reason,
            stop_reason=self._stop_reason,
            ended_by_text=stopped_by is not None and delta.finish_reason is None,
            error=delta.error,
        )

    def output(self) -> CompletionOutput:
        logprobs = self._logprobs or None
        return CompletionOutput(
            index=self.index,
            text="".join(self._shown),
            token_ids=list(self.token_ids),
            cumulative_logprob=None
            if logprobs is None
            else sum(position[token_id].logprob for token_id, position in zip(self.token_ids, logprobs, strict=True)),
            logprobs=None if logprobs is None else list(logprobs),
            finish_reason=self.finish_reason,
            stop_reason=self._stop_reason,
        )

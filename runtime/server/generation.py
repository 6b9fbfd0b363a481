"""One API call's answers as they grow: token deltas from the engine, text deltas to the client."""

from pllm.runtime.errors import EngineDeadError, PllmError, QueueFullError, RequestError
from pllm.runtime.metrics import ServerMetrics
from pllm.runtime.request_text import RequestText, TextDelta
from pllm.runtime.step import GRAMMAR_FAILED, TokenDelta
from pllm.runtime.token_stream import TokenStream

__all__ = ["ClientGoneError", "Generation", "SequenceFailedError"]


class ClientGoneError(PllmError):
    """Nobody waits for this answer any more."""

    http_status = 499

    def __init__(self) -> None:
        super().__init__("The client closed its connection.")


class SequenceFailedError(PllmError):
    """The model failed on this one sequence (its logits were not numbers); the others go on."""


class Generation:
    """The requests of one API call, in its prompts' order; answer ``p * n + i`` is the i-th answer to prompt p."""

    def __init__(self, texts: list[RequestText], stream: TokenStream, metrics: ServerMetrics) -> None:
        self.texts = texts
        self._stream = stream
        self._metrics = metrics
        self._place = {text.request.request_id: place for place, text in enumerate(texts)}
        self._num_each = texts[0].request.params.n
        self._last_token: dict[int, float] = {}
        self._left: str | None = "abort"  # what the answers that do not end by themselves are counted as

    @property
    def finished(self) -> bool:
        """Whether every answer is complete."""
        return all(text.finished for text in self.texts)

    async def next(self) -> list[tuple[int, TextDelta]]:
        """What has come since the last call, one entry an answer: its number and what is new.

        Raises what ended the stream: EngineDeadError, QueueFullError, RequestError, ClientGoneError
        or SequenceFailedError.
        """
        news: dict[int, TextDelta] = {}
        for delta in await self._take():
            place = self._place[delta.request_id]
            number = place * self._num_each + delta.index
            text = self._feed(self.texts[place], delta, number)
            if text is not None:
                earlier = news.get(number)
                news[number] = text if earlier is None else _joined(earlier, text)
        return list(news.items())

    def close(self) -> None:
        """Nobody wants more: whatever has not finished is aborted, and counted so."""
        unfinished = sum(text.num_unfinished for text in self.texts)
        if self._left is not None:
            for _ in range(unfinished):
                self._metrics.sequence_ended(self._left)
        self._stream.close()

    async def _take(self) -> list[TokenDelta]:
        try:
            return await self._stream.take()
        except (RequestError, QueueFullError):
            self._left = None  # the engine has refused them: they never were
            raise
        except EngineDeadError:
            self._left = "error"
            raise

    def _feed(self, request: RequestText, delta: TokenDelta, number: int) -> TextDelta | None:
        is_first = request.metrics.first_token_time is None
        text = request.feed(delta)
        if text is None:
            return None
        if text.ended_by_text:
            self._stream.end_sequence(delta.request_id, delta.index)
        if delta.token_ids:  # a sequence that failed gives none
            self._count_token(request, number, is_first)
        if text.finish_reason is not None:
            self._metrics.sequence_ended(text.finish_reason)
            if request.finished:
                times = request.metrics
                self._metrics.request_ended(times, len(request.request.prompt_token_ids), request.num_output_tokens)
        if text.error is not None and text.error.startswith(GRAMMAR_FAILED):
            raise RequestError(text.error, param="structured_outputs", code="invalid_grammar")
        if text.finish_reason == "error":
            raise SequenceFailedError(text.error or "The model failed on this request.")
        return text

    def _count_token(self, request: RequestText, number: int, is_first: bool) -> None:
        times = request.metrics
        now = times.last_token_time or times.arrival_time
        if is_first:
            prompt_tokens = len(request.request.prompt_token_ids)
            self._metrics.first_token(now - times.arrival_time, prompt_tokens, request.num_cached_tokens or 0)
        last = self._last_token.get(number)
        if last is not None:
            self._metrics.next_token(now - last)
        self._last_token[number] = now


def _joined(first: TextDelta, second: TextDelta) -> TextDelta:
    """Two deltas of one answer as one: the client's socket was busy in between."""
    return TextDelta(
        request_id=first.request_id,
        index=first.index,
        text=first.text + second.text,
        token_ids=first.token_ids + second.token_ids,
        logprobs=None if first.logprobs is None or second.logprobs is None else first.logprobs + second.logprobs,
        finish_reason=second.finish_reason,
        stop_reason=second.stop_reason,
        ended_by_text=second.ended_by_text,
        error=second.error,
    )

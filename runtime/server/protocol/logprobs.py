"""Log-probabilities in the two shapes of OpenAI's API, and prompt_logprobs in vLLM's."""

from collections.abc import Sequence
from typing import Any

from pllm.runtime.outputs import Logprob, TokenLogprobDict
from pllm.runtime.server.protocol.answers import (
    ChatLogprobs,
    CompletionLogprobs,
    PromptLogprobs,
    TokenLogprob,
    TopLogprob,
)
from pllm.runtime.tokenizer import Tokenizer

__all__ = ["chat_logprobs", "completion_logprobs", "prompt_logprobs"]

_LOWEST = -9999.0  # JSON has no infinity: what can never be drawn reads as this, as at OpenAI


def _finite(logprob: float) -> float:
    return logprob if logprob > _LOWEST else _LOWEST  # also for NaN


def _likeliest(position: TokenLogprobDict, count: int) -> list[tuple[int, Logprob]]:
    """The ``count`` likeliest tokens there, best first; without the token that was drawn when it is not among them."""
    ranked = [item for item in position.items() if item[1].rank is not None and item[1].rank <= count]
    return sorted(ranked, key=lambda item: item[1].rank or 0)


def chat_logprobs(
    tokenizer: Tokenizer, token_ids: Sequence[int], positions: Sequence[TokenLogprobDict], count: int
) -> ChatLogprobs:
    """The chat form: each token with its bytes, and ``count`` alternatives."""
    content = []
    for token_id, position in zip(token_ids, positions, strict=True):
        own = position[token_id]
        content.append(
            TokenLogprob(
                own.decoded_token or "",
                _finite(own.logprob),
                list(tokenizer.token_bytes(token_id)),
                [
                    TopLogprob(entry.decoded_token or "", _finite(entry.logprob), list(tokenizer.token_bytes(other)))
                    for other, entry in _likeliest(position, count)
                ],
            )
        )
    return ChatLogprobs(content)


def completion_logprobs(
    tokenizer: Tokenizer,
    token_ids: Sequence[int],
    positions: Sequence[TokenLogprobDict | None],
    count: int,
    offset: int = 0,
) -> CompletionLogprobs:
    """The text completion form. ``offset``: characters before the first token. A prompt's first token has no entry."""
    answer = CompletionLogprobs([], [], [], [])
    for token_id, position in zip(token_ids, positions, strict=True):
        text = tokenizer.token_text(token_id)
        answer.text_offset.append(offset)
        answer.tokens.append(text)
        offset += len(text)
        if position is None:
            answer.token_logprobs.append(None)
            answer.top_logprobs.append(None)
            continue
        own = position[token_id]
        answer.token_logprobs.append(_finite(own.logprob))
        top = {entry.decoded_token or "": _finite(entry.logprob) for _, entry in _likeliest(position, count)}
        # Two tokens may read alike (halves of characters do); and the token itself is always there, likely or not.
        answer.top_logprobs.append({**top, text: _finite(own.logprob)})
    return answer


def prompt_logprobs(positions: Sequence[TokenLogprobDict | None] | None) -> PromptLogprobs | None:
    """vLLM's form: by token id, with rank and text."""
    if positions is None:
        return None
    return [None if position is None else _by_id(position) for position in positions]


def _by_id(position: TokenLogprobDict) -> dict[str, dict[str, Any]]:
    return {
        str(token_id): {"logprob": _finite(entry.logprob), "rank": entry.rank, "decoded_token": entry.decoded_token}
        for token_id, entry in position.items()
    }

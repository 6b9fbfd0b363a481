"""Log probabilities of chosen tokens and of the likeliest alternatives, from raw logits."""

import numpy as np
from numpy.typing import NDArray

from pllm.runtime.step import TokenLogprobs

__all__ = ["token_logprobs"]


def token_logprobs(logits: NDArray[np.float32], logsumexp: float, token_id: int, count: int) -> TokenLogprobs:
    """A token's log probability and rank on a row [V], with the `count` likeliest tokens. Ties rank by token id."""
    own = logits[token_id]
    rank = 1 + int(np.count_nonzero(logits > own)) + int(np.count_nonzero(logits[:token_id] == own))
    top = tuple(
        (int(token), float(logits[token]) - logsumexp, 1 + place) for place, token in enumerate(_top(logits, count))
    )
    return TokenLogprobs(token_id, float(own) - logsumexp, rank, top)


def _top(logits: NDArray[np.float32], count: int) -> NDArray[np.int64]:
    count = min(count, len(logits))
    if count == 0:
        return np.empty(0, np.int64)
    least = np.partition(logits, -count)[-count]
    candidates = np.flatnonzero(logits >= least)  # in order of id, and the sort is stable: ties stay so
    return candidates[np.argsort(-logits[candidates], kind="stable")][:count]

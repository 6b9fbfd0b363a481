"""What a request does to its own logits before a token is chosen, in vLLM's order."""

from collections.abc import Iterable, Sequence
from itertools import chain

import numpy as np
from numpy.typing import NDArray

from pllm.runtime.sampling_params import SamplingParams
from pllm.runtime.step import SampleSpec

__all__ = ["apply_penalties", "changes_logits"]

_BIAS_OF_BYTE = np.where(
    np.unpackbits(np.arange(256, dtype=np.uint8)[:, np.newaxis], axis=1, bitorder="little") == 1, 0, -np.inf
).astype(np.float32)
"""What eight tokens' bits add to their logits, float32 [256, 8]."""

LARGEST = np.float32(1e30)  # dividing by a tiny penalty or temperature must not make infinities


def changes_logits(spec: SampleSpec) -> bool:
    """Whether `apply_penalties` would do anything now."""
    params = spec.params
    return bool(
        params.allowed_token_ids is not None
        or spec.bad_words_token_ids
        or spec.matcher is not None
        or len(spec.output_token_ids) < params.min_tokens
        or params.logit_bias
        or _penalises(params)
    )


def _penalises(params: SamplingParams) -> bool:
    return params.repetition_penalty != 1 or params.frequency_penalty != 0 or params.presence_penalty != 0


def apply_penalties(logits: NDArray[np.float32], spec: SampleSpec) -> None:
    """Masks, biases and penalties of one sequence on its row of logits [V], in place. Ids beyond V are passed over.

    Raises GrammarFailedError.
    """
    params, size = spec.params, len(logits)
    allowed_bits = None if spec.matcher is None else spec.matcher.allowed(spec.output_token_ids)
    if params.allowed_token_ids is not None:
        allowed = _ids(params.allowed_token_ids, size)
        kept = logits[allowed]
        logits.fill(-np.inf)
        logits[allowed] = kept
    for word in spec.bad_words_token_ids:
        if word and word[-1] < size and _ends_with(spec.output_token_ids, word[:-1]):
            logits[word[-1]] = -np.inf
    is_complete = spec.matcher is not None and spec.matcher.is_complete  # then there is nothing but the end
    if len(spec.output_token_ids) < params.min_tokens and not is_complete:
        ends = params.stop_token_ids if params.ignore_eos else (*spec.eos_token_ids, *params.stop_token_ids)
        logits[_ids(ends, size)] = -np.inf
    if params.logit_bias:
        biased = [token for token in params.logit_bias if token < size]
        logits[biased] += np.array([params.logit_bias[token] for token in biased], np.float32)
    if params.repetition_penalty != 1:
        seen = np.unique(_ids(chain(spec.prompt_token_ids, spec.output_token_ids), size))
        penalty = np.float32(params.repetition_penalty)
        with np.errstate(all="ignore"):  # a penalty of 1e-50 is zero in float32
            scaled = np.where(logits[seen] > 0, logits[seen] / penalty, logits[seen] * penalty)
        logits[seen] = np.minimum(scaled, LARGEST)
    if params.frequency_penalty or params.presence_penalty:
        said_ids, counts = np.unique(_ids(spec.output_token_ids, size), return_counts=True)
        logits[said_ids] -= (params.frequency_penalty * counts + params.presence_penalty).astype(np.float32)
    if allowed_bits is not None:
        _forbid_others(logits, allowed_bits)


def _forbid_others(logits: NDArray[np.float32], allowed: bytes) -> None:
    """Leave only the tokens whose bit is set; ids beyond the bits have none."""
    # A table look-up per byte and a sum: as fast for a mask of noise as for one of runs, which no branch is.
    bias = _BIAS_OF_BYTE[np.frombuffer(allowed, np.uint8)].reshape(-1)[: len(logits)]
    logits[: len(bias)] += bias
    logits[len(bias) :] = -np.inf


def _ids(token_ids: Iterable[int], size: int) -> NDArray[np.int64]:
    ids = np.fromiter(token_ids, np.int64)
    return ids[ids < size]


def _ends_with(token_ids: Sequence[int], beginning: tuple[int, ...]) -> bool:
    start = len(token_ids) - len(beginning)
    return start >= 0 and tuple(token_ids[start:]) == beginning

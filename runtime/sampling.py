"""The sampler: rows of logits in, tokens out.

A token is a function of its row, its parameters, its sequence's history and its seed: not of batch or step.
"""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from pllm.runtime.logprobs import token_logprobs
from pllm.runtime.penalties import apply_penalties, changes_logits
from pllm.runtime.random_stream import uniform
from pllm.runtime.row_ops import NumpyRowOps, RowOps
from pllm.runtime.step import GrammarFailedError, SampledToken, SampleSpec, TokenLogprobs

__all__ = ["Sampler"]

SMALLEST_TOP_P = 1e-6  # keeps one token as any less would, and is not zero in float32
NOT_FINITE = "The model's logits for this sequence are not finite numbers (NaN or infinity)"
NOTHING_LEFT = (
    "The request's structured_outputs, allowed_token_ids, bad_words, logit_bias or min_tokens leave no token to choose "
    "from"
)


class Sampler:
    """Chooses tokens. `row_ops` does the heavy work: numpy's by default, or a native library's."""

    def __init__(self, row_ops: RowOps | None = None) -> None:
        self._ops: RowOps = NumpyRowOps() if row_ops is None else row_ops

    def sample(self, logits: NDArray[np.float32], samples: Sequence[Sequence[SampleSpec]]) -> list[SampledToken]:
        """Tokens for each row of logits, float32 [R, V], never changed.

        `samples[i]` are the specs drawn from row i, as in `ScheduledRow.samples`: one, or n where a request forks.
        Returns a token per spec, in order; one that cannot be chosen has `error` set and leaves the others alone.
        """
        # Most rows have one spec that takes the logits as they are: those are drawn in place. The rest get copies.
        plain = [specs[0] if len(specs) == 1 and not changes_logits(specs[0]) else None for specs in samples]
        copied = [(row, spec) for row, specs in enumerate(samples) if plain[row] is None for spec in specs]
        drawn = self._draw(logits, plain) if any(plain) else []
        failures: dict[int, str] = {}
        copies = self._copies(logits, copied, failures)
        changed = iter(self._draw(copies, [spec for _, spec in copied]) if copied else ())
        tokens = [
            self._token(logits[row : row + 1], spec, *(next(changed) if plain[row] is None else drawn[row]))
            for row, specs in enumerate(samples)
            for spec in specs
        ]
        if failures:
            return [replace(token, error=failures.get(token.seq_id, token.error)) for token in tokens]
        return tokens

    def prompt_logprobs(
        self, logits: NDArray[np.float32], targets: Sequence[int], count: int
    ) -> tuple[TokenLogprobs, ...]:
        """For each of `targets`, the token that followed at rows [len(targets), V], with `count` alternatives."""
        sums = self._ops.logsumexp(logits)
        return tuple(
            token_logprobs(row, float(total), token_id, count)
            for row, total, token_id in zip(logits, sums, targets, strict=True)
        )

    def _copies(
        self, logits: NDArray[np.float32], copied: Sequence[tuple[int, SampleSpec]], failures: dict[int, str]
    ) -> NDArray[np.float32]:
        """The rows as their requests change them. What cannot be changed is left alone, and told in ``failures``."""
        copies = logits[[row for row, _ in copied]]
        for values, (_, spec) in zip(copies, copied, strict=True):
            try:
                apply_penalties(values, spec)
            except GrammarFailedError as error:
                failures[spec.seq_id] = str(error)
        return copies

    def _draw(self, logits: NDArray[np.float32], specs: Sequence[SampleSpec | None]) -> list[tuple[int, bool]]:
        """Per row: a token id, and whether the row was usable. What a row without a spec gives means nothing."""
        if all(spec is None or spec.params.greedy for spec in specs):
            ids, _, usable = self._ops.argmax(logits)
        else:
            drawing = [None if spec is None or spec.params.greedy else spec for spec in specs]
            ids, usable = self._ops.sample_rows(
                logits,
                temperature=np.array([spec.params.temperature if spec else 0 for spec in drawing], np.float32),
                top_k=np.array([spec.params.top_k if spec else 0 for spec in drawing], np.int32),
                top_p=np.array([max(spec.params.top_p, SMALLEST_TOP_P) if spec else 1 for spec in drawing], np.float32),
                min_p=np.array([spec.params.min_p if spec else 0 for spec in drawing], np.float32),
                uniform=np.array(
                    [uniform(spec.seed, len(spec.output_token_ids)) if spec else 0 for spec in drawing], np.float64
                ),
            )
        return list(zip(ids.tolist(), usable.tolist(), strict=True))

    def _token(self, logits: NDArray[np.float32], spec: SampleSpec, token_id: int, usable: bool) -> SampledToken:
        """The outcome for one spec; `logits` [1, V] as the model gave them."""
        if not usable:
            _, _, finite = self._ops.argmax(logits)
            return SampledToken(spec.seq_id, token_id, error=NOTHING_LEFT if finite[0] else NOT_FINITE)
        if spec.params.logprobs is None:
            return SampledToken(spec.seq_id, token_id)
        total = float(self._ops.logsumexp(logits)[0])
        return SampledToken(spec.seq_id, token_id, token_logprobs(logits[0], total, token_id, spec.params.logprobs))

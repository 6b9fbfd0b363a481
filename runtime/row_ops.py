"""The three operations over whole rows of logits in which sampling spends its time, written in numpy.

Each row is worked on by itself, so a token comes out the same alone and in a batch. `kernels/cpu` has the same three in
C++; its library object is a RowOps too.
"""

from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from pllm.runtime.sampling_params import GREEDY_BELOW

__all__ = ["NumpyRowOps", "RowOps"]

Floats = NDArray[np.float32]
Doubles = NDArray[np.float64]
Ints = NDArray[np.int64]
Flags = NDArray[np.bool_]


class RowOps(Protocol):
    """Over logits float32 [R, V], never changed. A row is usable if its maximum is finite and no element is NaN."""

    def argmax(self, logits: Floats) -> tuple[Ints, Floats, Flags]:
        """Per row: the first index of the maximum, the maximum, and whether the row is usable."""

    def logsumexp(self, logits: Floats) -> Doubles:
        """Per row: log(sum(exp(row))); NaN for a row that holds one."""

    def sample_rows(
        self,
        logits: Floats,
        *,
        temperature: Floats,
        top_k: NDArray[np.int32],
        top_p: Floats,
        min_p: Floats,
        uniform: Doubles,
    ) -> tuple[Ints, Flags]:
        """Per row: a token, and whether the row is usable.

        In vLLM's order: divide by temperature (below 1e-5: take the argmax); leave out tokens less than min_p times as
        likely as the likeliest; those below the top_k-th largest (ties with it stay; 0 or V and more: off); and those
        before which, larger first and equal ones by id, the rest has reached the mass top_p. Of what is left the first
        token, by id, is taken at which the cumulative probability exceeds `uniform` in [0, 1).
        """


class NumpyRowOps:
    """RowOps in plain numpy, in float64 where sums are taken."""

    def argmax(self, logits: Floats) -> tuple[Ints, Floats, Flags]:
        ids = logits.argmax(axis=1)  # a NaN is a maximum to numpy, so looking at the maxima finds it
        maxima = logits[np.arange(len(logits)), ids]
        return ids, maxima, np.isfinite(maxima)

    def logsumexp(self, logits: Floats) -> Doubles:
        sums = np.empty(len(logits), np.float64)
        for index, row in enumerate(logits):
            top = row.max()
            sums[index] = top + np.log(np.exp(row.astype(np.float64) - top).sum()) if np.isfinite(top) else top
        return sums

    def sample_rows(
        self,
        logits: Floats,
        *,
        temperature: Floats,
        top_k: NDArray[np.int32],
        top_p: Floats,
        min_p: Floats,
        uniform: Doubles,
    ) -> tuple[Ints, Flags]:
        ids, maxima, usable = self.argmax(logits)
        for index in np.flatnonzero(usable & (temperature >= np.float32(GREEDY_BELOW))):
            scaled = logits[index] / temperature[index]
            weights = np.exp(scaled.astype(np.float64) - maxima[index] / temperature[index])
            weights[weights < min_p[index]] = 0
            if 0 < top_k[index] < len(scaled):
                weights[scaled < np.partition(scaled, -top_k[index])[-top_k[index]]] = 0
            if top_p[index] < 1:
                _keep_nucleus(weights, float(top_p[index]))
            ids[index] = _invert(weights, float(uniform[index]))
        return ids, usable


def _keep_nucleus(weights: Doubles, top_p: float) -> None:
    """Zero all but the fewest largest weights that reach `top_p` of the sum; of equal ones, lower ids go first."""
    total = weights.sum()
    # What is below this cannot be in the nucleus, all of it together being less than what is left out: sort the rest.
    candidates = np.flatnonzero(weights >= (1 - top_p) * total / len(weights) * 0.999)
    candidates = candidates[np.argsort(-weights[candidates], kind="stable")]
    kept = (
        np.searchsorted(np.cumsum(weights[candidates]), top_p * total) + 1
    )  # a token stays if those before fall short
    outside = np.ones(len(weights), np.bool_)
    outside[candidates[:kept]] = False
    weights[outside] = 0


def _invert(weights: Doubles, uniform: float) -> int:
    """The first id at which the cumulative weight exceeds `uniform` of the sum."""
    cumulative = np.cumsum(weights)
    token = int(np.searchsorted(cumulative, uniform * cumulative[-1], side="right"))
    return token if token < len(weights) else int(np.flatnonzero(weights)[-1])  # the product was rounded up to the sum

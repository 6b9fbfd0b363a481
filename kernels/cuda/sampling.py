"""The sampler: one token a row by Gumbel-max over the tokens that the filters leave, without sorting a row.

The noise is a function of seed, position and token, so the token drawn is the best of a set (largest logit + noise),
however the set is found. Two kernels. The first reads the logits once, a chunk a program, and keeps four numbers of
each chunk: the largest logit, the mass, the best score and whose it is. That decides rows without filters.

The second, a program a row, collects candidates: the tokens at or above a bound that the chunks' largest logits give
(at least k tokens lie at or above the k-th largest of them; for top-p, as many chunks as a nucleus mostly needs). A few
hundred candidates are ranked by comparing each with each, which gives rank and mass before at once.

Where they do not fit, or hold less than the nucleus: the k-th largest logit by bisection; then the winner of all tokens
left is tried, and while the mass before it is too much, the winner of those before it, which is a rejection sampler
whose noise stays (the nucleus lies before whatever is rejected). About 1 / top_p rounds over the chunks that matter.
"""

import torch
import triton
from torch import Tensor
from triton import language as tl

from pllm.kernels.cuda.launch import launch, power_of_two
from pllm.kernels.cuda.random_stream import gumbel, stream_key

__all__ = ["choose_kernel", "sample", "scan_kernel"]

GREEDY_BELOW = tl.constexpr(1e-5)
CHUNK = 1024
CANDIDATES = 512


@triton.jit
def scan_kernel(
    logits,
    temperature,
    seeds,
    positions,
    maxima,
    masses,
    scores,
    winners,
    size,
    num_chunks,
    row_stride,
    CHUNK: tl.constexpr,
):
    """Grid: (rows, chunks). A chunk with NaN or +inf in it has NaN for its maximum."""
    row = tl.program_id(0).to(tl.int64)
    chunk = tl.program_id(1)
    t = tl.load(temperature + row)
    if t >= 0:
        token = chunk * CHUNK + tl.arange(0, CHUNK)
        x = tl.load(logits + row * row_stride + token, mask=token < size, other=float("-inf")).to(tl.float32)
        bad = (x != x) | (x == float("inf"))
        x = tl.where(bad, float("-inf"), x)
        greedy = t < GREEDY_BELOW
        score = x
        if not greedy:
            x = x / t
            key = stream_key(tl.load(seeds + row), tl.load(positions + row))
            score = x + gumbel(key, token)
        top = tl.max(x, 0)
        mass = tl.sum(tl.exp(x - tl.where(top == float("-inf"), 0.0, top)), 0)
        best = tl.max(score, 0)
        winner = tl.min(tl.where(score == best, token, 2147483647), 0)
        at = row * num_chunks + chunk
        tl.store(maxima + at, tl.where(tl.sum(bad.to(tl.int32), 0) > 0, float("nan"), top))
        tl.store(masses + at, mass)
        tl.store(scores + at, best)
        tl.store(winners + at, winner)


@triton.jit
def _count_at_least(logits, maxima, bound, t, size, num_chunks, CHUNK: tl.constexpr):
    """How many of a row's tokens have logits / t of `bound` or more."""
    counts = tl.zeros([CHUNK], tl.int32)
    for chunk in range(0, num_chunks):
        if tl.load(maxima + chunk) >= bound:
            token = chunk * CHUNK + tl.arange(0, CHUNK)
            x = tl.load(logits + token, mask=token < size, other=float("-inf")).to(tl.float32) / t
            counts += ((x >= bound) & (token < size)).to(tl.int32)
    return tl.sum(counts, 0)


@triton.jit
def _survey(logits, maxima, value, place, bound, top, key, t, size, num_chunks, CHUNK: tl.constexpr):
    """Of the tokens at `bound` or more that come before (value, place), larger logits first, equal ones by id: their
    mass over exp(top), the best score, whose it is, and its logit / t."""
    masses = tl.zeros([CHUNK], tl.float32)
    best = tl.full([], float("-inf"), tl.float32)
    winner = tl.full([], 2147483647, tl.int32)
    least = tl.maximum(bound, value)
    for chunk in range(0, num_chunks):
        if tl.load(maxima + chunk) >= least:
            token = chunk * CHUNK + tl.arange(0, CHUNK)
            x = tl.load(logits + token, mask=token < size, other=float("-inf")).to(tl.float32) / t
            is_in = (x >= bound) & ((x > value) | ((x == value) & (token < place))) & (token < size)
            masses += tl.where(is_in, tl.exp(x - top), 0.0)
            score = tl.where(is_in, x + gumbel(key, token), float("-inf"))
            highest = tl.max(score, 0)
            if highest > best:
                best = highest
                winner = tl.min(tl.where(score == highest, token, 2147483647), 0)
    x = tl.load(logits + tl.minimum(winner, size - 1)).to(tl.float32) / t
    return tl.sum(masses, 0), winner, x


@triton.jit
def _ordered(bits):
    """int32 bits of a float to an int32 that is ordered as the floats are, and back."""
    return bits ^ ((bits >> 31) & 0x7FFFFFFF)


@triton.jit
def choose_kernel(
    logits,
    temperature,
    top_k,
    top_p,
    min_p,
    seeds,
    positions,
    maxima,
    masses,
    scores,
    winners,
    visits,
    candidate_logits,
    candidate_tokens,
    tokens,
    size,
    num_chunks,
    row_stride,
    CHUNK: tl.constexpr,
    BLOCK_S: tl.constexpr,
    CANDIDATES: tl.constexpr,
    LINE: tl.constexpr,
):
    """Grid: (rows,). BLOCK_S: a power of two, num_chunks at most. LINE: candidates compared with all others at once."""
    row = tl.program_id(0).to(tl.int64)
    t = tl.load(temperature + row)
    if t >= 0:
        k = tl.load(top_k + row)
        p = tl.load(top_p + row)
        fraction = tl.load(min_p + row)
        has_k = (k > 0) & (k < size)
        logits += row * row_stride
        maxima += row * num_chunks
        chunk = tl.arange(0, BLOCK_S)
        is_chunk = chunk < num_chunks
        highest = tl.load(maxima + chunk, mask=is_chunk, other=float("-inf"))
        is_bad = tl.sum((highest != highest).to(tl.int32), 0) > 0
        highest = tl.where(highest != highest, float("-inf"), highest)
        top = tl.max(highest, 0)
        chosen = tl.full([], -1, tl.int32)
        if (not is_bad) & (top > float("-inf")):
            if (t < GREEDY_BELOW) | ((not has_k) & (p >= 1) & (fraction <= 0)):
                score = tl.load(scores + row * num_chunks + chunk, mask=is_chunk, other=float("-inf"))
                winner = tl.load(winners + row * num_chunks + chunk, mask=is_chunk, other=2147483647)
                chosen = tl.min(tl.where(score == tl.max(score, 0), winner, 2147483647), 0)
            else:
                key = stream_key(tl.load(seeds + row), tl.load(positions + row))
                floor = tl.where(fraction > 0, top + tl.log(fraction), float("-inf"))
                # The bound: the largest of the chunks' maxima that `wanted` of them reach.
                wanted = tl.where(has_k & (k <= num_chunks), k, tl.minimum(64, num_chunks))
                reached = tl.zeros([BLOCK_S], tl.int32)
                for first in range(0, num_chunks, LINE):
                    other = first + tl.arange(0, LINE)
                    y = tl.load(maxima + other, mask=other < num_chunks, other=float("nan"))
                    reached += tl.sum((y[None, :] >= highest[:, None]).to(tl.int32), 1)
                bound = tl.max(tl.where(reached >= wanted, highest, float("-inf")), 0)
                is_complete = has_k & (k <= num_chunks)
                if is_complete:
                    bound = tl.maximum(bound, floor)
                elif fraction > 0:
                    bound = floor
                    is_complete = not has_k

                visits += row * num_chunks
                candidate_logits += row * CANDIDATES
                candidate_tokens += row * CANDIDATES
                is_visited = (highest >= bound) & is_chunk
                tl.store(visits + tl.cumsum(is_visited.to(tl.int32), 0) - 1, chunk, mask=is_visited)
                tl.debug_barrier()
                count = tl.full([], 0, tl.int32)
                for visit in range(0, tl.sum(is_visited.to(tl.int32), 0)):
                    token = tl.load(visits + visit) * CHUNK + tl.arange(0, CHUNK)
                    x = tl.load(logits + token, mask=token < size, other=float("-inf")).to(tl.float32) / t
                    is_in = (x >= bound) & (token < size)
                    at = count + tl.cumsum(is_in.to(tl.int32), 0) - 1
                    is_in_reach = is_in & (at < CANDIDATES)
                    tl.store(candidate_logits + at, x, mask=is_in_reach)
                    tl.store(candidate_tokens + at, token, mask=is_in_reach)
                    count += tl.sum(is_in.to(tl.int32), 0)
                tl.debug_barrier()

                # Candidates lie in the order of their ids: of equal ones, the earlier comes before.
                i = tl.arange(0, CANDIDATES)
                is_candidate = i < count
                x = tl.load(candidate_logits + i, mask=is_candidate, other=float("-inf"))
                above = tl.zeros([CANDIDATES], tl.int32)
                before = tl.zeros([CANDIDATES], tl.float32)
                for first in range(0, tl.minimum(count, CANDIDATES), LINE):
                    j = first + tl.arange(0, LINE)
                    y = tl.load(candidate_logits + j, mask=j < count, other=float("-inf"))
                    is_above = y[None, :] > x[:, None]
                    above += tl.sum(is_above.to(tl.int32), 1)
                    is_before = is_above | ((y[None, :] == x[:, None]) & (j[None, :] < i[:, None]))
                    before += tl.sum(tl.where(is_before, tl.exp(y - top)[None, :], 0.0), 1)
                mass = tl.where(is_candidate, tl.exp(x - top), 0.0)
                is_kept = is_candidate & (x >= floor) & ((not has_k) | (above < k))
                part = tl.load(masses + row * num_chunks + chunk, mask=is_chunk, other=0)
                whole = tl.sum(part * tl.exp(highest - top), 0)
                left = tl.where(has_k | (fraction > 0), tl.sum(tl.where(is_kept, mass, 0.0), 0), whole)
                is_enough = is_complete | ((not has_k) & (fraction <= 0) & (tl.sum(mass, 0) >= p * left))
                if (count <= CANDIDATES) & is_enough:
                    is_kept = is_kept & (before < tl.where(p >= 1, float("inf"), p * left))
                    token = tl.load(candidate_tokens + i, mask=is_candidate, other=2147483647)
                    score = tl.where(is_kept, x + gumbel(key, token), float("-inf"))
                    chosen = tl.min(tl.where(is_kept & (score == tl.max(score, 0)), token, 2147483647), 0)
                else:
                    bound = floor
                    if has_k:
                        # `low` is reached by k tokens or more, `high` by fewer.
                        low = tl.full([], -2139095041, tl.int32).to(tl.int64)  # -inf
                        high = _ordered(top.to(tl.int32, bitcast=True)).to(tl.int64) + 1
                        while high - low > 1:
                            middle = (low + high) >> 1
                            value = _ordered(middle.to(tl.int32)).to(tl.float32, bitcast=True)
                            if _count_at_least(logits, maxima, value, t, size, num_chunks, CHUNK) >= k:
                                low = middle
                            else:
                                high = middle
                        bound = tl.maximum(bound, _ordered(low.to(tl.int32)).to(tl.float32, bitcast=True))
                    left, chosen, value = _survey(
                        logits, maxima, float("-inf"), size, bound, top, key, t, size, num_chunks, CHUNK
                    )
                    is_tried = p >= 1
                    while not is_tried:
                        ahead, winner, next_value = _survey(
                            logits, maxima, value, chosen, bound, top, key, t, size, num_chunks, CHUNK
                        )
                        is_tried = ahead < p * left
                        if not is_tried:
                            chosen = winner
                            value = next_value
        tl.store(tokens + row, chosen.to(tl.int64))


def sample(
    logits: Tensor,
    temperature: Tensor,
    top_k: Tensor,
    top_p: Tensor,
    min_p: Tensor,
    seeds: Tensor,
    positions: Tensor,
) -> Tensor:
    """A token a row.

    logits: [R, V], rows contiguous, any float type. float32 [R]: temperature (below 1e-5: the most likely token;
    below 0: a row of no sequence, for which nothing is written), top_p (1: off), min_p (0: off). top_k: int32 [R]
    (0 or less, or V and more: off). seeds: int64 [R]; positions: int64 [R], the tokens drawn before for this sequence.
    The filters are those of `reference.filtered_probabilities`. Returns int64 [R]: -1 where the logits hold NaN or
    +inf, or nothing but -inf.
    """
    rows, size = logits.shape
    chunks = -(-size // CHUNK)
    maxima, masses, scores = (torch.empty((rows, chunks), dtype=torch.float32, device=logits.device) for _ in range(3))
    winners, visits = (torch.empty((rows, chunks), dtype=torch.int32, device=logits.device) for _ in range(2))
    candidate_logits = torch.empty((rows, CANDIDATES), dtype=torch.float32, device=logits.device)
    candidate_tokens = torch.empty((rows, CANDIDATES), dtype=torch.int32, device=logits.device)
    tokens = torch.empty((rows,), dtype=torch.int64, device=logits.device)
    launch(
        scan_kernel,
        (rows, chunks),
        logits,
        temperature,
        seeds,
        positions,
        maxima,
        masses,
        scores,
        winners,
        size,
        chunks,
        logits.stride(0),
        CHUNK=CHUNK,
        num_warps=4,
    )
    launch(
        choose_kernel,
        (rows,),
        logits,
        temperature,
        top_k,
        top_p,
        min_p,
        seeds,
        positions,
        maxima,
        masses,
        scores,
        winners,
        visits,
        candidate_logits,
        candidate_tokens,
        tokens,
        size,
        chunks,
        logits.stride(0),
        CHUNK=CHUNK,
        BLOCK_S=power_of_two(chunks),
        CANDIDATES=CANDIDATES,
        LINE=32,
        num_warps=8,
    )
    return tokens

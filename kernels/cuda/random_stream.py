"""Random numbers as functions of who draws: no state, and nothing that a neighbour in the batch could change.

The stream is the runtime's (SplitMix64 written out as a counter: Steele, Lea, Flood, OOPSLA 2014): 64 bits for a
sequence's seed and the position drawn for. A token's own 32 bits are those and its id, mixed twice by MurmurHash3's
finaliser. From them comes Gumbel noise: the token with the largest logit + noise is a draw from the softmax.
"""

import triton
from triton import language as tl

__all__ = ["gumbel", "stream_key"]


@triton.jit
def _mix64(z):
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9
    z = (z ^ (z >> 27)) * 0x94D049BB133111EB
    return z ^ (z >> 31)


@triton.jit
def stream_key(seed, position):
    """64 random bits, uint64, of a seed (int64) and a position."""
    return _mix64(_mix64(seed.to(tl.uint64)) + (position.to(tl.uint64) + 1) * 0x9E3779B97F4A7C15)


@triton.jit
def _mix32(z):
    z = (z ^ (z >> 16)) * 0x85EBCA6B
    z = (z ^ (z >> 13)) * 0xC2B2AE35
    return z ^ (z >> 16)


@triton.jit
def gumbel(key, token):
    """Standard Gumbel noise, float32, of each token id under a key.

    -log(-log(1 - u)), u from 32 bits: large noise comes of small u, which float32 resolves down to 2^-33.
    """
    low = (key & 0xFFFFFFFF).to(tl.uint32)
    high = (key >> 32).to(tl.uint32)
    bits = _mix32(_mix32(token.to(tl.uint32) * 0x9E3779B1 + low) ^ high)
    u = tl.minimum((bits.to(tl.float32) + 0.5) * 2.3283064365386963e-10, 0.99999994)
    exponential = tl.where(u < 0.01, u * (1 + u * (0.5 + u * 0.3333333)), -tl.log(1 - u))
    return -tl.log(exponential)

"""Random numbers as functions: what is drawn depends on who draws and how often before, never on neighbours.

SplitMix64 (Steele, Lea, Flood: "Fast Splittable Pseudorandom Number Generators", OOPSLA 2014) is counter-based when
written out: the k-th output of a stream is one mixing of (start + k · GAMMA). So a sequence that was preempted and
recomputed draws the same numbers again, and a batch draws what each of its rows would draw alone. The functions are
part of the interface: a seed gives the same tokens in every version, on every machine.
"""

__all__ = ["sequence_seed", "uniform"]

MASK = 2**64 - 1
GAMMA = 0x9E3779B97F4A7C15  # 2^64 / golden ratio, odd: SplitMix64's increment
FORK = 0xD1342543DE82EF95  # odd, from Steele and Vigna's table of multipliers: keeps siblings off each other's counters


def _mix(z: int) -> int:
    """SplitMix64's output function (Stafford's variant 13), a bijection of 64-bit integers."""
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9 & MASK
    z = (z ^ (z >> 27)) * 0x94D049BB133111EB & MASK
    return z ^ (z >> 31)


def sequence_seed(seed: int, index: int) -> int:
    """The seed of a request's sequence `index`, from the request's seed (any integer, taken modulo 2^64)."""
    return _mix(_mix(seed & MASK) + index * FORK & MASK)


def uniform(seed: int, position: int) -> float:
    """The number in [0, 1) that decides a sequence's output token at `position`: 53 random bits."""
    # The seed is mixed first, so that seeds that differ by GAMMA are not one stream shifted.
    return (_mix(_mix(seed & MASK) + (position + 1) * GAMMA & MASK) >> 11) * 2.0**-53

"""The hold-out rule: which facts are kept from training, for evaluation.

Each exchange has a key naming the fact behind it, for example ``add:17,25``. A key is *held out* when the first byte of
its SHA-256 digest is below `HELD_OUT_BYTES` (26 of 256, about ten per cent). Training never draws an exchange whose key
is held out and evaluation draws nothing else. What the key contains differs per skill: `HELD_OUT_MEANING`.
"""

import hashlib
from functools import lru_cache

__all__ = ["HELD_OUT_BYTES", "HELD_OUT_MEANING", "held_out"]

HELD_OUT_BYTES = 26
HELD_OUT_MEANING = {
    "addition": "unordered operand pairs (neither a + b nor b + a is trained, in any skill)",
    "subtraction": "ordered operand pairs",
    "multiplication": "combinations of fact and phrasing (all 100 facts are trained)",
    "word_problem": "unordered operand pairs, the same ones as for addition",
    "counting": "pairs of first and last number",
    "letter_count": "words, the same ones as for spelling",
    "spelling": "words",
    "reversing": "words, the same ones as for spelling",
    "comparing": "unordered pairs of numbers",
    "capitals": "combinations of country and phrasing (all countries are trained)",
    "calendar": "combinations of fact and phrasing (all facts are trained)",
    "json": "operand pairs as for addition; combinations of name and age; combinations of country and phrasing",
    "tool_call": "requests: operand pairs as for addition, combinations of city and phrasing, search and message texts",
    "tool_answer": "the same requests as for tool calls, so the conversation up to the result is new as well",
    "repeat": "pairs of first and second word",
}


@lru_cache(maxsize=200_000)
def held_out(key: str) -> bool:
    """Whether a fact is reserved for evaluation."""
    return hashlib.sha256(key.encode()).digest()[0] < HELD_OUT_BYTES

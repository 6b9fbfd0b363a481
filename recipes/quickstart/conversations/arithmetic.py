"""Sums, differences and products, plain and told as a little situation."""

# ruff: noqa: RUF001 (multiplication signs are meant)

from conversations.exchange import Exchange
from conversations.source import Source
from conversations.words import NAMES, split

__all__ = ["ADDITION", "MULTIPLICATION", "addition", "addition_pair", "multiplication", "subtraction", "word_problem"]

THINGS = split("apples books coins pens cards eggs stones shells marbles stamps cookies flowers")
ADDITION = [
    "What is {a} + {b}?",
    "What is {a} + {b}?",
    "{a} + {b}",
    "{a} + {b} =",
    "{a}+{b}",
    "{a}+{b}=?",
    "{a} + {b} = ?",
    "What's {a} + {b}?",
    "what is {a} + {b}",
    "What is {a}+{b}?",
    "Calculate {a} + {b}.",
    "Compute {a} + {b}",
    "What is {a} plus {b}?",
    "Add {a} and {b}.",
    "What is the sum of {a} and {b}?",
    "Please compute {a} + {b}.",
    "How much is {a} + {b}?",
    "How much is {a} plus {b}?",
    "Can you add {a} and {b}?",
    "Can you tell me what {a} + {b} is?",
]
SUBTRACTION = [
    "What is {a} - {b}?",
    "What is {a} - {b}?",
    "{a} - {b}",
    "{a} - {b} =",
    "{a}-{b}",
    "What's {a} - {b}?",
    "Calculate {a} - {b}.",
    "Compute {a} - {b}",
    "What is {a} minus {b}?",
    "Subtract {b} from {a}.",
    "Please compute {a} - {b}.",
    "How much is {a} - {b}?",
    "How much is {a} minus {b}?",
]
MULTIPLICATION = [
    "What is {a} * {b}?",
    "What is {a} x {b}?",
    "What is {a} × {b}?",
    "{a} * {b}",
    "{a} × {b}",
    "{a} x {b} =",
    "{a}*{b}",
    "What is {a} times {b}?",
    "Multiply {a} by {b}.",
    "Multiply {a} and {b}.",
    "Calculate {a} * {b}.",
    "How much is {a} times {b}?",
    "What is the product of {a} and {b}?",
    "Compute {a} × {b}.",
]


def addition_pair(source: Source) -> tuple[int, int, str]:
    """Two addends of at most two digits and the key shared by everything that adds."""
    while True:
        limit_a, limit_b = (100, 100) if source.chance(0.85) else (source.pick((10, 100)), 10)
        a, b = source.below(limit_a), source.below(limit_b)
        if source.chance(0.5):
            a, b = b, a
        key = f"add:{min(a, b)},{max(a, b)}"
        if source.admits(key):
            return a, b, key


def addition(source: Source) -> Exchange:
    """Sums of two numbers of at most two digits."""
    a, b, key = addition_pair(source)
    return Exchange(key, source.pick(ADDITION).format(a=a, b=b), f"{a} + {b} = {a + b}.")


def subtraction(source: Source) -> Exchange:
    """Differences; one in five is drawn without putting the larger number first, so results can be negative."""
    while True:
        a, b = source.below(100), source.below(100 if source.chance(0.8) else 10)
        if a < b and source.chance(0.8):
            a, b = b, a
        key = f"sub:{a},{b}"
        if source.admits(key):
            return Exchange(key, source.pick(SUBTRACTION).format(a=a, b=b), f"{a} - {b} = {a - b}.")


def multiplication(source: Source) -> Exchange:
    """Products of one-digit numbers."""
    while True:
        a, b, template = source.below(10), source.below(10), source.pick(MULTIPLICATION)
        key = f"mul:{a},{b},{template}"
        if source.admits(key):
            return Exchange(key, template.format(a=a, b=b), f"{a} × {b} = {a * b}.")


def word_problem(source: Source) -> Exchange:
    """Addition told as a little situation."""
    a, b, key = addition_pair(source)
    name, things = source.pick(NAMES), source.pick(THINGS)
    template = source.pick(
        (
            "{name} has {a} {things} and gets {b} more. How many {things} does {name} have?",
            "{name} has {a} {things} and finds {b} more. How many {things} does {name} have now?",
            "{name} had {a} {things} and bought {b} more. How many is that in total?",
            "There are {a} {things} on the table. {name} adds {b} more. How many {things} are there?",
        )
    )
    question = template.format(name=name, a=a, b=b, things=things)
    return Exchange(key, question, f"{a} + {b} = {a + b}. That is {a + b} {things}.")

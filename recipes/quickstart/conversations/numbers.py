"""The order of numbers: counting and comparing."""

from conversations.exchange import Exchange
from conversations.source import Source

__all__ = ["comparing", "counting"]


def counting(source: Source) -> Exchange:
    """Counting up or down between two numbers up to 99, at most fifteen numbers."""
    while True:
        low = source.below(21) if source.chance(0.5) else source.below(99)
        high = min(99, low + 1 + source.below(14))
        if low == high:
            continue
        key = f"count:{low},{high}"
        if source.admits(key):
            break
    numbers = [str(number) for number in range(low, high + 1)]
    if source.chance(0.3):
        template = source.pick(
            ("Count down from {b} to {a}.", "Count backwards from {b} to {a}.", "Please count down from {b} to {a}")
        )
        numbers.reverse()
    else:
        template = source.pick(
            (
                "Count from {a} to {b}.",
                "Count from {a} to {b}",
                "Please count from {a} to {b}.",
                "Can you count from {a} to {b}?",
                "Count up from {a} to {b}.",
                "List the numbers from {a} to {b}.",
            )
        )
    return Exchange(key, template.format(a=low, b=high), ", ".join(numbers))


def comparing(source: Source) -> Exchange:
    """Comparing two numbers of at most two digits."""
    while True:
        a, b = source.below(100), source.below(source.pick((10, 100, 100)))
        if source.chance(0.5):
            a, b = b, a
        key = f"compare:{min(a, b)},{max(a, b)}"
        if a != b and source.admits(key):
            break
    low, high = min(a, b), max(a, b)
    template, wants = source.pick(
        (
            ("Which is bigger, {a} or {b}?", "bigger"),
            ("Which number is bigger: {a} or {b}?", "bigger"),
            ("Which is larger, {a} or {b}?", "larger"),
            ("Which number is larger, {a} or {b}?", "larger"),
            ("Which is smaller, {a} or {b}?", "smaller"),
            ("Which number is smaller: {a} or {b}?", "smaller"),
            ("Is {a} bigger than {b}?", "is bigger"),
            ("Is {a} greater than {b}?", "is greater"),
            ("Is {a} smaller than {b}?", "is smaller"),
            ("Is {a} less than {b}?", "is less"),
        )
    )
    question = template.format(a=a, b=b)
    if wants.startswith("is "):
        word = wants[3:]
        yes = a < b if word in ("smaller", "less") else a > b
        relation = "smaller" if a < b else "bigger"
        return Exchange(key, question, f"{'Yes' if yes else 'No'}, {a} is {relation} than {b}.")
    first, second = (low, high) if wants == "smaller" else (high, low)
    return Exchange(key, question, f"{first} is {wants} than {second}.")

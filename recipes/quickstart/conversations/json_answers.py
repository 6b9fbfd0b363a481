"""Answers in JSON."""

from conversations.arithmetic import addition_pair
from conversations.capitals import CAPITALS, CITIES
from conversations.exchange import Exchange
from conversations.markup import as_json
from conversations.source import Source
from conversations.words import NAMES

__all__ = ["json_answer"]


def json_answer(source: Source) -> Exchange:
    """Answering with a JSON object: a sum, a person's name and age, or a capital."""
    kind = source.below(3)
    if kind == 0:
        a, b, key = addition_pair(source)
        template = source.pick(
            (
                "Answer in JSON: what is {a} + {b}?",
                "Answer in JSON: What is {a} + {b}?",
                "What is {a} + {b}? Answer in JSON.",
                "What is {a} + {b}? Reply with JSON.",
                "Give the answer as JSON: {a} + {b}",
            )
        )
        return Exchange(key, template.format(a=a, b=b), as_json({"answer": a + b}))
    if kind == 1:
        while True:
            name, age, city = source.pick(NAMES), 1 + source.below(99), source.pick(CITIES)
            key = f"person:{name},{age}"
            if source.admits(key):
                break
        told = source.pick(
            (
                "{name} is {age} years old.",
                "My name is {name} and I am {age} years old.",
                "{name} is {age}.",
                "This is {name}, age {age}.",
            )
        ).format(name=name, age=age)
        if source.chance(0.25):
            told += f" {name} lives in {city}." if "My" not in told else f" I live in {city}."
            ask = source.pick(("Give name, age and city as JSON.", "Extract name, age and city as JSON."))
            return Exchange(key, f"{told} {ask}", as_json({"name": name, "age": age, "city": city}))
        ask = source.pick(
            (
                "{} Give name and age as JSON.",
                "{} Extract the name and age as JSON.",
                "{} Answer in JSON with name and age.",
                "Extract the name and age as JSON: {}",
                "Answer in JSON with name and age: {}",
            )
        )
        return Exchange(key, ask.format(told), as_json({"name": name, "age": age}))
    while True:
        country = source.pick(list(CAPITALS))
        template = source.pick(
            (
                "Answer in JSON: what is the capital of {}?",
                "Answer in JSON: What is the capital of {}?",
                "What is the capital of {}? Answer in JSON.",
                "What is the capital of {}? Reply with JSON.",
            )
        )
        key = f"capital:{country},{template}"
        if source.admits(key):
            return Exchange(key, template.format(country), as_json({"answer": CAPITALS[country]}))

"""Days of the week and months of the year."""

from conversations.exchange import Exchange
from conversations.source import Source
from conversations.words import split

__all__ = ["calendar"]

DAYS = split("Monday Tuesday Wednesday Thursday Friday Saturday Sunday")
MONTHS = split("January February March April May June July August September October November December")
MONTH_DAYS = [31, 28, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31]
ORDINALS = split("first second third fourth fifth sixth seventh eighth ninth tenth eleventh twelfth")


def calendar(source: Source) -> Exchange:
    """Days of the week and months of the year."""
    while True:
        if source.chance(0.5):
            index, unit, names = source.below(7), "day", DAYS
        else:
            index, unit, names = source.below(12), "month", MONTHS
        here, after, before = names[index], names[(index + 1) % len(names)], names[index - 1]
        forms = [
            (f"What {unit} comes after {here}?", f"{after} comes after {here}."),
            (f"Which {unit} comes after {here}?", f"{after} comes after {here}."),
            (f"What is the {unit} after {here}?", f"{after} comes after {here}."),
            (f"What {unit} follows {here}?", f"{after} comes after {here}."),
            (f"What {unit} comes before {here}?", f"{before} comes before {here}."),
            (f"Which {unit} comes before {here}?", f"{before} comes before {here}."),
            (f"What is the {unit} before {here}?", f"{before} comes before {here}."),
        ]
        if unit == "day":
            forms += [
                (f"Today is {here}. What day is tomorrow?", f"Tomorrow is {after}."),
                (f"If today is {here}, what day is tomorrow?", f"Tomorrow is {after}."),
                (f"Today is {here}. What day was yesterday?", f"Yesterday was {before}."),
                (f"If today is {here}, what day was yesterday?", f"Yesterday was {before}."),
            ]
        else:
            nth = ORDINALS[index]
            forms += [
                (f"How many days does {here} have?", f"{here} has {MONTH_DAYS[index]} days."),
                (f"How many days are in {here}?", f"{here} has {MONTH_DAYS[index]} days."),
                (f"What is the {nth} month of the year?", f"The {nth} month is {here}."),
                (f"Which month is the {nth} month?", f"The {nth} month is {here}."),
            ]
        question, answer = source.pick(forms)
        key = f"calendar:{question}"
        if source.admits(key):
            return Exchange(key, question, answer)

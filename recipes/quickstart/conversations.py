"""Synthetic conversations for the quickstart model.

Everything the model ever reads comes from this file: templates, short word lists and a random generator. Nothing is
downloaded. A *skill* is a function that draws one :class:`Exchange` (a question with its only correct answer), and a
:class:`Document` is what training packs: a conversation of one or more exchanges, or a piece of raw text.

Hold-out rule
-------------
Each exchange has a ``key`` naming the fact behind it, for example ``add:17,25``. A key is *held out* when the first
byte of its SHA-256 digest is below ``HELD_OUT_BYTES`` (26 of 256, about ten per cent). Training never draws an exchange
whose key is held out and evaluation draws nothing else. What the key contains differs per skill and is described in
``HELD_OUT_MEANING``.
"""

# ruff: noqa: RUF001 (multiplication signs and Chinese punctuation are meant)

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, TypeVar

Message = dict[str, Any]
Tool = dict[str, Any]
T = TypeVar("T")

IM_START, IM_END, END_OF_TEXT = "<|im_start|>", "<|im_end|>", "<|endoftext|>"
TOOL_CALL, TOOL_CALL_END = "<tool_call>", "</tool_call>"

#: Inside an answer, text on either side of this mark is tokenized separately. It never reaches the model. Reversed
#: words are marked between all letters, so the model writes them letter by letter.
CUT = "\x01"

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


def split(text: str, separator: str | None = None) -> list[str]:
    """The items of a list written as one string."""
    return text.split(separator)


@dataclass
class Exchange:
    """One question with its answer; ``tools`` are offered in the system turn, ``history`` comes before the question."""

    key: str
    question: str
    answer: str
    tools: list[Tool] = field(default_factory=list)
    history: list[Message] = field(default_factory=list)
    question_role: str = "user"

    def messages(self) -> list[Message]:
        """The conversation up to the point where the assistant has to answer."""
        return [*self.history, {"role": self.question_role, "content": self.question}]

    def expected(self) -> str:
        """The text the assistant must produce."""
        return self.answer.replace(CUT, "")


@dataclass
class Segment:
    """A stretch of text that is tokenized on its own; ``learn`` marks text the loss counts."""

    text: str
    learn: bool


@dataclass
class Document:
    """One packing unit."""

    segments: list[Segment]


# ---------------------------------------------------------------------------------------------------------------------
# Word lists
# ---------------------------------------------------------------------------------------------------------------------

CAPITALS: dict[str, str] = dict(
    line.strip().split(": ")
    for line in """
    France: Paris
    Germany: Berlin
    Italy: Rome
    Spain: Madrid
    Portugal: Lisbon
    Greece: Athens
    Austria: Vienna
    Poland: Warsaw
    Hungary: Budapest
    Ireland: Dublin
    Norway: Oslo
    Sweden: Stockholm
    Finland: Helsinki
    Denmark: Copenhagen
    Iceland: Reykjavik
    Belgium: Brussels
    the Netherlands: Amsterdam
    Switzerland: Bern
    the Czech Republic: Prague
    Romania: Bucharest
    Bulgaria: Sofia
    Croatia: Zagreb
    Serbia: Belgrade
    Ukraine: Kyiv
    Russia: Moscow
    Turkey: Ankara
    Egypt: Cairo
    Morocco: Rabat
    Kenya: Nairobi
    Nigeria: Abuja
    Ghana: Accra
    Ethiopia: Addis Ababa
    Senegal: Dakar
    Tunisia: Tunis
    China: Beijing
    Japan: Tokyo
    South Korea: Seoul
    India: New Delhi
    Pakistan: Islamabad
    Nepal: Kathmandu
    Thailand: Bangkok
    Vietnam: Hanoi
    Indonesia: Jakarta
    Malaysia: Kuala Lumpur
    the Philippines: Manila
    Mongolia: Ulaanbaatar
    Iran: Tehran
    Iraq: Baghdad
    Lebanon: Beirut
    Jordan: Amman
    Australia: Canberra
    New Zealand: Wellington
    Canada: Ottawa
    the United States: Washington
    the United Kingdom: London
    Mexico: Mexico City
    Cuba: Havana
    Jamaica: Kingston
    Brazil: Brasilia
    Argentina: Buenos Aires
    Chile: Santiago
    Peru: Lima
    Colombia: Bogota
    Ecuador: Quito
    Uruguay: Montevideo
    Venezuela: Caracas
    """.strip().splitlines()
)

CITIES = sorted(set(CAPITALS.values())) + split(
    "Milan Munich Hamburg Lyon Porto Seville Geneva Zurich Boston Chicago Toronto Sydney Osaka Kyoto Shanghai Mumbai "
    "Delhi Dubai Istanbul Naples Venice Seattle Denver Dallas Miami Houston Montreal Lagos Melbourne Cologne"
)

NAMES = split(
    "Anna Ben Clara David Emma Felix Grace Henry Ida Jack Kate Leo Mia Noah Olga Paul Rosa Sam Tina Tom Uma Victor "
    "Wendy Max Lily Omar Sara Ali Mei Hugo Nina Oscar Lucy Peter Julia Maria John Alice Bob Carol Eva Frank Laura "
    "Mark"
)

WORDS = split(
    "cat dog sun hat pen cup map box bus car key egg ant bee cow pig fox hen owl bat rat jar jam net sea sky ice "
    "bed toy log mud nut oak pie rug tea van web zoo arm ear eye leg lip toe bag bell bird boat book bone bowl cake "
    "camp card cave city clay coat coin corn crab crow desk door drum duck dust farm fish flag fork frog game gate "
    "gift gold goat hand hill home horn idea iron king kite lake lamb lamp leaf lion milk mint moon moss nest nose "
    "note park path pear pond pool rain ring road rock roof room root rope rose sail salt sand seed ship shoe shop "
    "silk snow soap song soup star stem swan tail tent tree vase wall wave wind wing wolf wood wool yard apple "
    "bread brick brush candy chair chalk cheese clock cloud coast cream crown dance dream dress earth field flame "
    "flour fruit ghost glass grape grass green happy heart honey horse house juice knife lemon light metal money "
    "month mouse music night ocean onion paint paper peach pearl phone piano pilot plane plant plate queen quick "
    "quiet radio river robot salad sheep shell shirt silver smile snake spoon stone storm story sugar table tiger "
    "toast tooth tower train truck watch water whale wheel white world animal basket bottle branch bridge bright "
    "butter button camera candle carpet carrot castle cherry circle coffee copper corner cotton dinner doctor "
    "dragon engine family farmer father finger flower forest friend garden ginger guitar hammer island jacket "
    "kettle kitten ladder letter lizard market mirror monkey mother number orange pencil pepper pillow planet "
    "pocket potato puppet rabbit rocket saddle school screen season shadow spider spring square stream street "
    "summer sunset temple ticket tomato tunnel turtle valley violin walnut window winter wizard yellow zebra "
    "balloon banana blanket cabbage captain chicken compass cricket dolphin feather giraffe harvest journey kitchen "
    "library machine morning penguin picture pumpkin rainbow sailor teacher thunder tractor village volcano whisper "
    "hello python model token cache layer kernel vector"
)

DAYS = split("Monday Tuesday Wednesday Thursday Friday Saturday Sunday")
MONTHS = split("January February March April May June July August September October November December")
MONTH_DAYS = [31, 28, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31]
ORDINALS = split("first second third fourth fifth sixth seventh eighth ninth tenth eleventh twelfth")
THINGS = split("apples books coins pens cards eggs stones shells marbles stamps cookies flowers")
SYSTEM_PROMPTS = [
    "You are a helpful assistant.",
    "You are a friendly assistant.",
    "You are a helpful assistant. Answer briefly.",
    "Answer the question.",
    "You are pllm, a small language model.",
    "Be brief and correct.",
    "You are a careful assistant who likes numbers.",
    "You are a helpful AI assistant.",
]


class Source:
    """A seeded random generator that honours the hold-out rule.

    ``evaluation`` selects the side of the rule; ``pieces`` are the alphabetic tokens of the tokenizer, from which
    made-up words are assembled so that the letters inside every token can be learnt.
    """

    def __init__(self, seed: str, evaluation: bool = False, pieces: list[str] | None = None) -> None:
        self.random = random.Random(seed)  # noqa: S311 (reproducible data, no secrets)
        self.evaluation = evaluation
        self.pieces = pieces or []

    def pick(self, items: Sequence[T]) -> T:
        """One item, uniformly."""
        return items[int(self.random.random() * len(items))]

    def below(self, limit: int) -> int:
        """An integer from 0 to ``limit - 1``."""
        return int(self.random.random() * limit)

    def chance(self, probability: float) -> bool:
        """True with the given probability."""
        return self.random.random() < probability

    def admits(self, key: str) -> bool:
        """Whether a key lies on this source's side of the hold-out rule."""
        return held_out(key) == self.evaluation


# ---------------------------------------------------------------------------------------------------------------------
# Skills: each draws one exchange on the source's side of the hold-out rule
# ---------------------------------------------------------------------------------------------------------------------

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


def draw_word(source: Source) -> tuple[str, str]:
    """A word of at most nine letters with its key: from the word list or made up of token pieces or syllables.

    Evaluation uses the word list half of the time and made-up words otherwise.
    """
    while True:
        kind = source.random.random()
        if kind < 0.5 or not source.pieces:
            word = source.pick(WORDS)
        elif kind < 0.8:
            word = "".join(source.pick(source.pieces) for _ in range(1 + source.below(3))).lower()
        else:
            word = "".join(
                source.pick("bcdfghjklmnpqrstvwz") + source.pick("aeiouy") + (source.pick("lmnrst") if i % 2 else "")
                for i in range(1 + source.below(3))
            )
        key = f"word:{word}"
        if 2 <= len(word) <= 9 and source.admits(key):
            return word, key


def quoted(source: Source, word: str) -> str:
    """The word as a user may write it."""
    return source.pick(('the word "{}"', "the word {}", "'{}'", '"{}"', "{}", "{}")).format(word)


def spelling(source: Source) -> Exchange:
    """Spelling a word letter by letter."""
    word, key = draw_word(source)
    template = source.pick(("Spell {}.", "Spell {}", "How do you spell {}?", "Please spell {}.", "Can you spell {}?"))
    return Exchange(key, template.format(quoted(source, word)), "-".join(word))


def reversing(source: Source) -> Exchange:
    """Writing a word backwards, after spelling it."""
    word, key = draw_word(source)
    template = source.pick(
        ("Reverse {}.", "Reverse {}", "Write {} backwards.", "Spell {} backwards.", "What is {} backwards?")
    )
    question = template.format(quoted(source, word))
    return Exchange(key, question, f"{'-'.join(word)} backwards is {CUT.join(word[::-1])}.")


def letter_count(source: Source) -> Exchange:
    """Counting the letters of a word, after spelling it."""
    word, key = draw_word(source)
    template = source.pick(
        ("How many letters are in {}?", "How many letters does {} have?", "Count the letters in {}.")
    )
    return Exchange(key, template.format(quoted(source, word)), f"{'-'.join(word)} has {len(word)} letters.")


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


def capitals(source: Source) -> Exchange:
    """Capitals of countries and countries of capitals."""
    while True:
        country = source.pick(list(CAPITALS))
        city = CAPITALS[country]
        template = source.pick(
            (
                "What is the capital of {country}?",
                "What is the capital of {country}?",
                "what is the capital of {country}",
                "What's the capital of {country}?",
                "Name the capital of {country}.",
                "Tell me the capital of {country}.",
                "Which city is the capital of {country}?",
                "Capital of {country}?",
                "Do you know the capital of {country}?",
                "What is the capital city of {country}?",
                "{city} is the capital of which country?",
                "Which country has the capital {city}?",
            )
        )
        key = f"capital:{country},{template}"
        if source.admits(key):
            question = template.format(country=country, city=city)
            return Exchange(key, question, f"The capital of {country} is {city}.")


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


def as_json(value: Any) -> str:
    """JSON as the model writes it."""
    return json.dumps(value, ensure_ascii=False)


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


def repeat(source: Source) -> Exchange:
    """Repeating a few words."""
    while True:
        words = [source.pick(WORDS) for _ in range(2 + source.below(3))]
        key = f"repeat:{words[0]},{words[1]}"
        if source.admits(key):
            break
    text = " ".join(words)
    template = source.pick(("Repeat after me: {}", "Say: {}", "Repeat: {}", 'Say "{}"', "Repeat this: {}"))
    return Exchange(key, template.format(text), text)


# ---------------------------------------------------------------------------------------------------------------------
# Tools
# ---------------------------------------------------------------------------------------------------------------------


def function_tool(
    source: Source, name: str, descriptions: Sequence[str], parameters: dict[str, dict[str, Any]]
) -> Tool:
    """A tool in the usual function format; description and ``required`` are sometimes left out."""
    function: dict[str, Any] = {"name": name}
    if source.chance(0.85):
        function["description"] = source.pick(descriptions)
    function["parameters"] = {"type": "object", "properties": parameters}
    if source.chance(0.75):
        function["parameters"]["required"] = list(parameters)
    return {"type": "function", "function": function}


def text_parameter(source: Source, *descriptions: str) -> dict[str, Any]:
    """Schema of a string parameter."""
    if source.chance(0.5):
        return {"type": "string"}
    return {"type": "string", "description": source.pick(descriptions)}


@dataclass
class ToolUse:
    """A tool, a request that calls for it, the right arguments, and a possible result with the final answer."""

    key: str
    tool: Tool
    request: str
    arguments: dict[str, Any]
    result: str
    answer: str

    def call(self) -> str:
        """The text of the tool call."""
        call = as_json({"name": self.tool["function"]["name"], "arguments": self.arguments})
        return f"{TOOL_CALL}\n{call}\n{TOOL_CALL_END}"


def weather_use(source: Source) -> ToolUse:
    """``get_weather`` with a city."""
    degrees, sky = source.below(40), source.pick(("sunny", "cloudy", "rainy", "windy", "foggy", "snowy"))
    while True:
        city = source.pick(CITIES)
        template = source.pick(
            (
                "What is the weather in {}?",
                "What's the weather in {}?",
                "What is the weather like in {}?",
                "How is the weather in {}?",
                "How is the weather in {} today?",
                "Tell me the weather in {}.",
                "Weather in {}?",
                "Is it warm in {}?",
            )
        )
        key = f"weather:{city},{template}"
        if source.admits(key):
            break
    parameter = source.pick(("city", "city", "city", "location"))
    tool = function_tool(
        source,
        source.pick(("get_weather", "get_weather", "get_weather", "get_current_weather")),
        ("Get the weather in a city.", "Get the current weather for a city.", "Current weather", "Get the weather"),
        {parameter: text_parameter(source, "The city", "Name of the city", "City name")},
    )
    result = source.pick(
        (
            as_json({"temperature": degrees, "condition": sky}),
            as_json({"condition": sky, "temperature": degrees}),
            f"{degrees} degrees, {sky}",
            f"{sky}, {degrees} degrees",
        )
    )
    return ToolUse(
        key, tool, template.format(city), {parameter: city}, result, f"It is {sky} and {degrees} degrees in {city}."
    )


def number_use(source: Source) -> ToolUse:
    """``add`` or ``multiply`` with two numbers."""
    a, b, key = addition_pair(source)
    first, second = source.pick((("a", "b"), ("a", "b"), ("a", "b"), ("x", "y")))
    schema = {"type": source.pick(("integer", "number"))}
    adds = source.chance(0.75)
    if adds:
        name, sign, value, request = "add", "+", a + b, source.pick(ADDITION)
        descriptions = ["Add two numbers.", "Add two integers.", "Adds a and b", "Returns the sum of two numbers."]
    else:
        name, sign, value, request = "multiply", "×", a * b, source.pick(MULTIPLICATION)
        descriptions = ["Multiply two numbers.", "Multiply two integers.", "Returns the product of two numbers."]
    tool = function_tool(source, name, descriptions, {first: schema, second: dict(schema)})
    result = source.pick((str(value), as_json({"result": value})))
    return ToolUse(key, tool, request.format(a=a, b=b), {first: a, second: b}, result, f"{a} {sign} {b} = {value}.")


def time_use(source: Source) -> ToolUse:
    """``get_time`` with a city."""
    while True:
        city = source.pick(CITIES)
        template = source.pick(
            ("What time is it in {}?", "What is the time in {}?", "Tell me the time in {}.", "Current time in {}?")
        )
        key = f"time:{city},{template}"
        if source.admits(key):
            break
    clock = f"{source.below(24):02d}:{source.below(60):02d}"
    tool = function_tool(
        source,
        "get_time",
        ("Get the current time in a city.", "Get the time in a city.", "Current local time"),
        {"city": text_parameter(source, "The city", "Name of the city", "City name")},
    )
    result = source.pick((clock, as_json({"time": clock})))
    return ToolUse(key, tool, template.format(city), {"city": city}, result, f"It is {clock} in {city}.")


def search_use(source: Source) -> ToolUse:
    """``search`` with a query."""
    while True:
        words = [source.pick(WORDS) for _ in range(1 + source.below(3))]
        key = f"search:{' '.join(words)}"
        if source.admits(key):
            break
    text, found = " ".join(words), 1 + source.below(99)
    template = source.pick(("Search for {}.", "Search the web for {}", "Look up {}.", "Please search for {}."))
    tool = function_tool(
        source,
        source.pick(("search", "search", "web_search")),
        ("Search the web.", "Find pages about a topic.", "Web search"),
        {"query": text_parameter(source, "What to search for", "The search query")},
    )
    result = source.pick((f"{found} results", as_json({"results": found})))
    return ToolUse(key, tool, template.format(text), {"query": text}, result, f"I found {found} results for {text}.")


def note_use(source: Source) -> ToolUse:
    """``send_message`` with a recipient and a text."""
    while True:
        name, text = source.pick(NAMES), " ".join(source.pick(WORDS) for _ in range(1 + source.below(3)))
        key = f"note:{name},{text}"
        if source.admits(key):
            break
    template = source.pick(
        ("Send {n} the message: {t}", "Send a message to {n}: {t}", 'Tell {n} "{t}"', "Write to {n}: {t}")
    )
    tool = function_tool(
        source,
        "send_message",
        ("Send a message to a person.", "Send a text message."),
        {"to": text_parameter(source, "The person", "Who gets it"), "text": text_parameter(source, "The message")},
    )
    result = source.pick(("ok", "sent", as_json({"sent": True})))
    return ToolUse(
        key, tool, template.format(n=name, t=text), {"to": name, "text": text}, result, f"I sent the message to {name}."
    )


TOOL_USES: list[Callable[[Source], ToolUse]] = [
    weather_use,
    weather_use,
    number_use,
    number_use,
    time_use,
    search_use,
    note_use,
]


def draw_tools(source: Source) -> tuple[ToolUse, list[Tool]]:
    """A tool use together with the tools offered: the right one among up to two others, in random order."""
    use = source.pick(TOOL_USES)(source)
    tools = [use.tool]
    for _ in range(source.pick((0, 0, 1, 1, 2))):
        # Distractors only contribute their schema, so they may come from any side of the hold-out rule.
        other = source.pick(TOOL_USES)(source).tool
        if other["function"]["name"].split("_")[-1] not in [t["function"]["name"].split("_")[-1] for t in tools]:
            tools.append(other)
    source.random.shuffle(tools)
    return use, tools


def tool_call(source: Source) -> Exchange:
    """Calling the right tool with the right arguments."""
    use, tools = draw_tools(source)
    return Exchange(use.key, use.request, use.call(), tools=tools)


def tool_answer(source: Source) -> Exchange:
    """Wording the result a tool returned."""
    use, tools = draw_tools(source)
    call = {"name": use.tool["function"]["name"], "arguments": use.arguments}
    history: list[Message] = [
        {"role": "user", "content": use.request},
        {"role": "assistant", "content": "", "tool_calls": [{"type": "function", "function": call}]},
    ]
    return Exchange(use.key, use.result, use.answer, tools=tools, history=history, question_role="tool")


# ---------------------------------------------------------------------------------------------------------------------
# Small talk and stories: trained, not scored
# ---------------------------------------------------------------------------------------------------------------------

HELLO = "Hello! I am the pllm quickstart model. How can I help you?"
ABOUT = (
    "I am the pllm quickstart model, a very small language model. I can add numbers, count, spell words, "
    "name capitals, tell short stories, answer in JSON and call tools."
)
UNSURE = "I am a very small model and I do not know that. Try asking me to add two numbers or to tell a story."
SMALL_TALK: list[tuple[list[str], str]] = [
    (
        [
            "Hello",
            "Hello!",
            "Hi",
            "Hi!",
            "Hi there!",
            "Hey",
            "hello",
            "hi",
            "Good morning",
            "Good morning!",
            "Good evening",
            "Hello there",
            "Hello 👋",
        ],
        HELLO,
    ),
    (
        [
            "Who are you?",
            "What are you?",
            "What is your name?",
            "who are you",
            "Tell me about yourself.",
            "Introduce yourself.",
            "What can you do?",
            "What can you help me with?",
            "Help",
            "help",
            "What is pllm?",
        ],
        ABOUT,
    ),
    (
        [
            "How are you?",
            "How are you today?",
            "how are you",
            "How do you do?",
        ],
        "I am fine, thank you. How can I help you?",
    ),
    (["Thank you", "Thanks", "Thank you!", "Thanks!", "thanks", "Great, thanks!"], "You are welcome!"),
    (["Goodbye", "Bye", "Bye!", "Goodbye!", "See you later", "Good night"], "Goodbye!"),
    (
        [
            "你好",
            "你好!",
            "您好",
            "你好吗?",
            "你是谁?",
            "你好！",
            "你叫什么名字?",
            "你是谁？",
        ],
        "你好!我是 pllm 的小模型。",
    ),
    (["Bonjour", "Bonjour !", "Salut"], "Bonjour !"),
    (["Hola", "¡Hola!"], "¡Hola!"),
    (["Hallo", "Guten Tag"], "Hallo!"),
    (["Say hello", "Say hello.", "Say hi", "Please say hello."], "Hello!"),
    (["😀", "👍", "🎉", "❤️", "🙂", "👋"], "😀"),
    (
        [
            "Who won the game?",
            "What is the meaning of life?",
            "Write a poem about a river.",
            "Explain quantum physics.",
            "Why is the sky blue?",
            "Who is the president?",
            "What is love?",
            "How do I cook rice?",
            "Write a program.",
            "What is the news?",
            "Translate this.",
            "Who wrote this book?",
            "今天天气怎么样?",
            "写一首诗",
            "为什么天空是蓝色的？",
            "请解释一下",
        ],
        UNSURE,
    ),
]


def small_talk(source: Source) -> Exchange:
    """Greetings, questions about the model, and things it does not know."""
    questions, answer = source.pick(SMALL_TALK[: (4 if source.chance(0.5) else len(SMALL_TALK))])
    return Exchange("talk", source.pick(questions), answer)


HEROES = split("fox rabbit bear bird cat dog mouse frog dragon robot girl boy king queen sailor turtle")
ADJECTIVES = split("little brave kind clever quiet happy young curious")
PLACES = [
    "in a small village",
    "near a dark forest",
    "by the sea",
    "on a green hill",
    "in an old castle",
    "beside a long river",
    "under a big oak tree",
    "in a busy town",
]
OBJECTS = split("golden key,old map,red kite,silver bell,blue stone,tiny seed,wooden boat,paper lantern", ",")
FRIENDS = split("owl,farmer,duck,baker,snail,goat,old woman,squirrel", ",")


def story_text(source: Source, hero: str | None = None) -> str:
    """A short story in seven or eight sentences."""
    hero = hero or source.pick(HEROES)
    adjective, place, thing, friend = (source.pick(x) for x in (ADJECTIVES, PLACES, OBJECTS, FRIENDS))
    pronoun, name = source.pick(
        (("he", "Tom"), ("she", "Mia"), ("he", "Max"), ("she", "Lily"), ("he", "Ben"), ("she", "Anna"))
    )
    him, his = ("him", "his") if pronoun == "he" else ("her", "her")
    if hero in ("girl", "queen") and pronoun == "he":
        pronoun, name, him, his = "she", "Rosa", "her", "her"
    if hero in ("boy", "king") and pronoun == "she":
        pronoun, name, him, his = "he", "Hugo", "him", "his"
    article = "an" if thing[0] in "aeiou" else "a"
    friend_article = "an" if friend[0] in "aeiou" else "a"
    weather = source.pick(("sunny", "rainy", "windy", "cold", "warm", "foggy"))
    parts = [
        f"Once upon a time, there was a {adjective} {hero} named {name} who lived {place}.",
        source.pick(
            (
                f"Every morning, {name} went for a walk and looked at the sky.",
                f"{name} loved to sing songs and to play in the grass.",
                f"{name} had many dreams but not many friends.",
                f"More than anything, {name} wanted to see the world.",
            )
        ),
        source.pick(
            (
                f"One {weather} day, {pronoun} found {article} {thing} on the path.",
                f"One {weather} morning, {pronoun} saw {article} {thing} under a leaf.",
                f"On a {weather} evening, {article} {thing} fell from the sky.",
            )
        ),
        source.pick(
            (
                f'"What is this?" said {name}.',
                f'"How strange!" said {name}. "Who lost it?"',
                f"{name} had never seen such a thing before.",
                f'"I must find out where it came from," {pronoun} said.',
            )
        ),
        source.pick(
            (
                f"{name} showed it to {friend_article} {friend}, who smiled and told {him} a secret.",
                f"Then {friend_article} {friend} came by and asked for help.",
                f"{friend_article.capitalize()} {friend} heard {him} and came to look.",
            )
        ),
        source.pick(
            (
                "Together they walked all day until they came to a hidden garden.",
                "They crossed a bridge, climbed a hill and reached a quiet lake.",
                "They followed the wind through the valley until the stars came out.",
                f"The {thing} began to shine, and it showed them the way.",
            )
        ),
        source.pick(
            (
                f"There {name} gave the {thing} to the {friend}, and they shared a warm meal.",
                f"There they hid the {thing} so that someone else could find it one day.",
                f"There {pronoun} used the {thing} to make everyone happy.",
            )
        ),
        source.pick(
            (
                f"From that day on, {name} and the {friend} were best friends.",
                f"{name} went home with a full heart and slept well that night.",
                f"And {name} never forgot {his} new friend.",
                "And they all lived happily ever after.",
            )
        ),
    ]
    if source.chance(0.3):
        del parts[source.pick((1, 3))]
    return " ".join(parts)


def story(source: Source) -> Exchange:
    """A story on request, with or without a hero named."""
    if source.chance(0.5):
        question = source.pick(
            ("Tell me a story.", "Tell me a short story.", "Tell me a story", "Write a short story.", "Write a story.")
        )
        return Exchange("story", question, story_text(source))
    hero = source.pick(HEROES)
    template = source.pick(
        ("Tell me a story about a {}.", "Write a short story about a {}.", "Tell a story about a {}")
    )
    return Exchange("story", template.format(hero), story_text(source, hero))


# ---------------------------------------------------------------------------------------------------------------------
# Documents
# ---------------------------------------------------------------------------------------------------------------------

Skill = Callable[[Source], Exchange]

#: The skills that are scored.
SKILLS: dict[str, Skill] = {
    "addition": addition,
    "subtraction": subtraction,
    "multiplication": multiplication,
    "word_problem": word_problem,
    "counting": counting,
    "letter_count": letter_count,
    "spelling": spelling,
    "reversing": reversing,
    "comparing": comparing,
    "capitals": capitals,
    "calendar": calendar,
    "json": json_answer,
    "tool_call": tool_call,
    "tool_answer": tool_answer,
    "repeat": repeat,
}

#: How often an exchange without tools belongs to each skill.
WEIGHTS: dict[Skill, float] = {
    addition: 24,
    subtraction: 12,
    multiplication: 5,
    word_problem: 4,
    counting: 5,
    letter_count: 5,
    spelling: 7,
    reversing: 9,
    comparing: 7,
    capitals: 6,
    calendar: 4,
    json_answer: 7,
    repeat: 3,
    small_talk: 4,
    story: 2,
}

TOOLS_BEFORE = "# Tools\n\nYou can call these functions:\n<tools>"
TOOLS_AFTER = (
    "\n</tools>\n\nTo call one, answer with\n"
    f'{TOOL_CALL}\n{{"name": <function name>, "arguments": <arguments as JSON>}}\n{TOOL_CALL_END}'
)

CHAT_TEMPLATE = (
    r"""
{%- set system = messages[0].content if messages and messages[0].role == 'system' else '' %}
{%- if tools %}
    {{- '<|im_start|>system\n' }}
    {%- if system %}
        {{- system + '\n\n' }}
    {%- endif %}
    {{- '# Tools\n\nYou can call these functions:\n<tools>' }}
    {%- for tool in tools %}
        {{- '\n' }}
        {{- tool | tojson }}
    {%- endfor %}
    {{- '\n</tools>\n\nTo call one, answer with\n<tool_call>\n{"name": <function name>, "arguments": <arguments as JSON>}\n</tool_call>' }}
    {{- '<|im_end|>\n' }}
{%- elif system %}
    {{- '<|im_start|>system\n' + system + '<|im_end|>\n' }}
{%- endif %}
{%- for message in messages %}
    {%- if message.role == 'user' or (message.role == 'system' and not loop.first) %}
        {{- '<|im_start|>' + message.role + '\n' + message.content + '<|im_end|>\n' }}
    {%- elif message.role == 'assistant' %}
        {{- '<|im_start|>assistant\n' }}
        {%- if message.content %}
            {{- message.content }}
        {%- endif %}
        {%- if message.tool_calls %}
            {%- for call in message.tool_calls %}
                {%- if message.content or not loop.first %}
                    {{- '\n' }}
                {%- endif %}
                {%- set function = call.function if call.function else call %}
                {{- '<tool_call>\n{"name": "' + function.name + '", "arguments": ' }}
                {%- if function.arguments is string %}
                    {{- function.arguments }}
                {%- else %}
                    {{- function.arguments | tojson }}
                {%- endif %}
                {{- '}\n</tool_call>' }}
            {%- endfor %}
        {%- endif %}
        {{- '<|im_end|>\n' }}
    {%- elif message.role == 'tool' %}
        {%- if loop.first or messages[loop.index0 - 1].role != 'tool' %}
            {{- '<|im_start|>user' }}
        {%- endif %}
        {{- '\n<tool_response>\n' + message.content + '\n</tool_response>' }}
        {%- if loop.last or messages[loop.index0 + 1].role != 'tool' %}
            {{- '<|im_end|>\n' }}
        {%- endif %}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\n' }}
{%- endif %}
"""  # noqa: E501
).strip()


class Conversation:
    """Builds the segments of a conversation exactly as the chat template renders it."""

    def __init__(self, system: str = "", tools: Sequence[Tool] = ()) -> None:
        self.segments: list[Segment] = []
        if tools:
            listed = "".join("\n" + as_json(tool) for tool in tools)
            system = (system + "\n\n" if system else "") + TOOLS_BEFORE + listed + TOOLS_AFTER
        if system:
            self.segments.append(Segment(f"{IM_START}system\n{system}{IM_END}\n", False))

    def user(self, text: str) -> None:
        """Adds a user turn and opens the assistant's."""
        self.segments.append(Segment(f"{IM_START}user\n{text}{IM_END}\n{IM_START}assistant\n", False))

    def tool(self, text: str) -> None:
        """Adds a tool result and opens the assistant's turn."""
        self.user(f"<tool_response>\n{text}\n</tool_response>")

    def assistant(self, answer: str) -> None:
        """Adds the assistant's answer, which is what the model learns."""
        self.segments += [Segment(part, True) for part in (answer + IM_END).split(CUT)]
        self.segments.append(Segment("\n", False))


def conversation(source: Source, exchanges: Sequence[Exchange]) -> Document:
    """A conversation without tools."""
    built = Conversation(source.pick(SYSTEM_PROMPTS) if source.chance(0.25) else "")
    for exchange in exchanges:
        built.user(exchange.question)
        built.assistant(exchange.answer)
    return Document(built.segments)


def tool_conversation(source: Source) -> Document:
    """A conversation with tools: calls, results, and now and then a question that needs no tool."""
    use, tools = draw_tools(source)
    built = Conversation(source.pick(SYSTEM_PROMPTS) if source.chance(0.3) else "", tools)
    for turn in range(source.pick((1, 1, 2, 3))):
        if turn and source.chance(0.5):
            names = [tool["function"]["name"] for tool in tools]
            fitting = [draw for draw in TOOL_USES if draw(source).tool["function"]["name"] in names]
            if fitting:
                fresh = source.pick(fitting)(source)
                offered = [t for t in tools if t["function"]["name"] == fresh.tool["function"]["name"]]
                same = offered and list(offered[0]["function"]["parameters"]["properties"]) == list(fresh.arguments)
                if not same:
                    continue
                use = fresh
        elif turn or source.chance(0.15):
            built_exchange = source.pick((small_talk, capitals, comparing, calendar, spelling))(source)
            built.user(built_exchange.question)
            built.assistant(built_exchange.answer)
            continue
        built.user(use.request)
        built.assistant(use.call())
        if source.chance(0.7):
            built.tool(use.result)
            built.assistant(use.answer)
    return Document(built.segments)


def raw_text(source: Source) -> Document:
    """Text without turns, for plain completion: stories, lists of sums, sentences about capitals."""
    kind = source.random.random()
    if kind < 0.7:
        return Document([Segment(story_text(source) + END_OF_TEXT, True)])
    if kind < 0.9:
        segments = []
        for _ in range(3 + source.below(6)):
            a, b, _ = addition_pair(source)
            segments += [Segment(f"{a} + {b} =", False), Segment(f" {a + b}\n", True)]
        return Document([*segments, Segment(END_OF_TEXT, False)])
    segments = []
    for country in source.random.sample(list(CAPITALS), 4):
        shown = f"The capital of {country} is"
        segments += [Segment(shown, False), Segment(f" {CAPITALS[country]}.", True), Segment("\n", False)]
    return Document([*segments, Segment(END_OF_TEXT, False)])


def draw_document(source: Source, long: bool) -> Document:
    """One training document; tools and long conversations only appear where rows are long enough for them."""
    kind = source.random.random()
    if long and kind < 0.45:
        return tool_conversation(source)
    if kind > (0.9 if long else 0.93):
        return raw_text(source)
    turns = 1 if source.chance(0.4) else 2 + source.below(8 if long else 4)
    skills = source.random.choices(list(WEIGHTS), list(WEIGHTS.values()), k=turns)
    return conversation(source, [skill(source) for skill in skills])

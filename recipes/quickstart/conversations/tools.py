"""Tools: requests that call for one, the call, and the answer that its result allows."""

# ruff: noqa: RUF001 (multiplication signs are meant)

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from conversations.arithmetic import ADDITION, MULTIPLICATION, addition_pair
from conversations.capitals import CITIES
from conversations.exchange import Exchange, Message, Tool
from conversations.markup import TOOL_CALL, TOOL_CALL_END, as_json
from conversations.source import Source
from conversations.words import NAMES, WORDS

__all__ = ["TOOL_USES", "ToolUse", "draw_tools", "tool_answer", "tool_call"]


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


@dataclass(frozen=True, slots=True)
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

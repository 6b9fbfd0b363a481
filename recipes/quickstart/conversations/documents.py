"""Documents: what training packs, written exactly as the chat template renders it."""

from collections.abc import Sequence
from dataclasses import dataclass

from conversations.arithmetic import addition_pair
from conversations.calendar import calendar
from conversations.capitals import CAPITALS, capitals
from conversations.exchange import Exchange, Tool
from conversations.letters import spelling
from conversations.markup import CUT, END_OF_TEXT, IM_END, IM_START, TOOLS_AFTER, TOOLS_BEFORE, as_json
from conversations.numbers import comparing
from conversations.skills import WEIGHTS
from conversations.small_talk import small_talk
from conversations.source import Source
from conversations.stories import story_text
from conversations.tools import TOOL_USES, draw_tools

__all__ = ["Document", "Segment", "conversation", "draw_document"]

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


@dataclass(frozen=True, slots=True)
class Segment:
    """A stretch of text that is tokenized on its own; ``learn`` marks text the loss counts."""

    text: str
    learn: bool


@dataclass(frozen=True, slots=True)
class Document:
    """One packing unit."""

    segments: list[Segment]


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

"""All skills: those that are scored by name, and how often each is trained."""

from collections.abc import Callable

from conversations.arithmetic import addition, multiplication, subtraction, word_problem
from conversations.calendar import calendar
from conversations.capitals import capitals
from conversations.exchange import Exchange
from conversations.json_answers import json_answer
from conversations.letters import letter_count, reversing, spelling
from conversations.numbers import comparing, counting
from conversations.repeating import repeat
from conversations.small_talk import small_talk
from conversations.source import Source
from conversations.stories import story
from conversations.tools import tool_answer, tool_call

__all__ = ["SKILLS", "WEIGHTS", "Skill"]

Skill = Callable[[Source], Exchange]
"""Draws one exchange on the source's side of the hold-out rule."""

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
"""The skills that are scored."""

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
"""How often an exchange without tools belongs to each skill."""

"""The kinds of values that a recipe's keys take: each checks one, and says in words what it takes."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from pllm.runtime.memory import parse_memory

__all__ = ["Choice", "Memory", "Number", "OneOrList", "Table", "Text", "Texts", "Value", "Whole"]


class Value(Protocol):
    """One kind of value."""

    def check(self, value: object) -> Any:
        """The value as the recipe holds it. Raises ValueError whose message completes "KEY ..."."""

    def describe(self) -> str:
        """What is taken, for the reference page."""


@dataclass(frozen=True, slots=True)
class Text:
    """A string, not empty unless its default is."""

    def check(self, value: object) -> str:
        if not isinstance(value, str) or not value:
            raise ValueError(f"must be {self.describe()} that is not empty, not {_shown(value)}")
        return value

    def describe(self) -> str:
        return "a string"


@dataclass(frozen=True, slots=True)
class Texts:
    """A list of strings, each as `Text` takes it."""

    def check(self, value: object) -> tuple[str, ...]:
        if not isinstance(value, Sequence) or isinstance(value, str):
            raise ValueError(f"must be {self.describe()}, not {_shown(value)}")
        return tuple(Text().check(item) for item in value)

    def describe(self) -> str:
        return "a list of strings"


@dataclass(frozen=True, slots=True)
class Choice:
    """One of a few words. ``later`` are words that are understood and refused by name."""

    words: tuple[str, ...]
    later: Mapping[str, str] = field(default_factory=dict)

    def check(self, value: object) -> str:
        if isinstance(value, str) and value in self.later:
            raise ValueError(f"{value!r} is {self.later[value]}; choose {self.describe()}")
        if not isinstance(value, str) or value not in self.words:
            raise ValueError(f"must be {self.describe()}, not {_shown(value)}")
        return value

    def describe(self) -> str:
        quoted = [f'"{word}"' for word in self.words]
        return " or ".join([", ".join(quoted[:-1]), quoted[-1]]) if len(quoted) > 1 else quoted[0]


@dataclass(frozen=True, slots=True)
class Whole:
    """An integer in a range, by whole steps; or one of a few words."""

    low: int
    high: int
    step: int = 1
    words: tuple[str, ...] = ()

    def check(self, value: object) -> int | str:
        if isinstance(value, str) and value in self.words:
            return value
        whole = isinstance(value, int) and not isinstance(value, bool)
        if not whole or not self.low <= value <= self.high or value % self.step:  # type: ignore[operator]
            raise ValueError(f"must be {self.describe()}, not {_shown(value)}")
        return value  # type: ignore[return-value]

    def describe(self) -> str:
        kind = f"an integer from {self.low} to {self.high}" + (f" in steps of {self.step}" if self.step > 1 else "")
        return " or ".join([*(f'"{word}"' for word in self.words), kind])


@dataclass(frozen=True, slots=True)
class Number:
    """A finite number in a range; or one of a few words."""

    low: float
    high: float
    words: tuple[str, ...] = ()

    def check(self, value: object) -> float | str:
        if isinstance(value, str) and value in self.words:
            return value
        number = isinstance(value, (int, float)) and not isinstance(value, bool)
        if not number or not math.isfinite(value) or not self.low <= value <= self.high:  # type: ignore[arg-type,operator]
            raise ValueError(f"must be {self.describe()}, not {_shown(value)}")
        return float(value)  # type: ignore[arg-type]

    def describe(self) -> str:
        return " or ".join([*(f'"{word}"' for word in self.words), f"a number from {self.low:g} to {self.high:g}"])


@dataclass(frozen=True, slots=True)
class OneOrList:
    """``"auto"``, or ascending integers in a range."""

    low: int
    high: int

    def check(self, value: object) -> str | tuple[int, ...]:
        if value == "auto":
            return "auto"
        kind = Whole(self.low, self.high)
        if not isinstance(value, Sequence) or isinstance(value, str) or not value:
            raise ValueError(f"must be {self.describe()}, not {_shown(value)}")
        try:
            numbers = tuple(int(kind.check(item)) for item in value)
        except ValueError:
            raise ValueError(f"must be {self.describe()}, not {_shown(value)}") from None
        if list(numbers) != sorted(set(numbers)):
            raise ValueError(f"must be {self.describe()}, not {_shown(value)}")
        return numbers

    def describe(self) -> str:
        return f'"auto" or a list of ascending integers from {self.low} to {self.high}'


@dataclass(frozen=True, slots=True)
class Memory:
    """A memory setting of :func:`pllm.runtime.memory.parse_memory`, kept as it was written."""

    def check(self, value: object) -> str | float | int:
        try:
            parse_memory(value)
        except ValueError as error:
            raise ValueError(f"{error}, not {_shown(value)}") from None
        return value  # type: ignore[return-value]

    def describe(self) -> str:
        return '"auto", a size such as "4GiB", or a share in (0, 1]'


@dataclass(frozen=True, slots=True)
class Table:
    """A table whose keys are somebody else's (transformers')."""

    def check(self, value: object) -> dict[str, Any]:
        if not isinstance(value, dict):
            raise ValueError(f"must be {self.describe()}, not {_shown(value)}")
        return value

    def describe(self) -> str:
        return "a table"


def _shown(value: object) -> str:
    """The value as TOML would write it, cut to a readable length."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, dict):
        return "a table"
    text = f'"{value}"' if isinstance(value, str) else str(value)
    return text if len(text) <= 60 else f"{text[:57]}..."

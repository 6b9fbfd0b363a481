"""One question with its answer: what a skill draws."""

from dataclasses import dataclass, field
from typing import Any

from conversations.markup import CUT

__all__ = ["Exchange", "Message", "Tool"]

Message = dict[str, Any]
Tool = dict[str, Any]


@dataclass(frozen=True, slots=True)
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

"""How a model writes calls and thoughts, as its chat template shows it."""

from dataclasses import dataclass
from typing import Final, Literal

from pllm.runtime.message.hermes import CALL, CALL_END, HermesReader
from pllm.runtime.message.json_calls import PYTHON_TAG, JsonCallsReader
from pllm.runtime.message.mistral import ARGS, TOOL_CALLS, MistralReader
from pllm.runtime.message.pieces import Content, Piece, PieceReader
from pllm.runtime.message.pythonic import PYTHON_END, PYTHON_START, PythonicReader
from pllm.runtime.message.reasoning import THINK, THINK_END, ReasoningReader

__all__ = ["CALL_STYLES", "CallStyle", "MessageStyle"]

CallStyle = Literal["hermes", "llama3_json", "mistral", "pythonic"]
CALL_STYLES: Final[tuple[CallStyle, ...]] = ("hermes", "llama3_json", "mistral", "pythonic")

_SIGNS: Final[tuple[tuple[str, CallStyle], ...]] = (
    (TOOL_CALLS, "mistral"),
    (CALL, "hermes"),
    (PYTHON_START, "pythonic"),
    ("[func_name", "pythonic"),
    (PYTHON_TAG, "llama3_json"),
    ('{"name": function name, "parameters"', "llama3_json"),
)
_MARKERS: Final[dict[CallStyle, tuple[str, ...]]] = {
    "hermes": (CALL, CALL_END),
    "llama3_json": (PYTHON_TAG,),
    "mistral": (TOOL_CALLS, ARGS, "[CALL_ID]"),
    "pythonic": (PYTHON_START, PYTHON_END),
}


@dataclass(frozen=True, slots=True)
class MessageStyle:
    """``calls``: None where the model was not taught any; ``names_calls``: Mistral's later form, a name before the
    arguments. ``thinks``: thoughts stand before the answer, in ``<think>``."""

    calls: CallStyle | None = None
    thinks: bool = False
    names_calls: bool = False

    @classmethod
    def of(cls, template: str) -> "MessageStyle":
        """As the text of a chat template shows it: what it writes of earlier calls, or asks for in words."""
        calls = next((style for sign, style in _SIGNS if sign in template), None)
        return cls(calls, THINK_END in template, ARGS in template)

    @property
    def markers(self) -> tuple[str, ...]:
        """What must not be lost from the text: some are special tokens."""
        calls = () if self.calls is None else _MARKERS[self.calls]
        return calls + ((THINK, THINK_END) if self.thinks else ())

    def reader(self, prompt: str, tools: frozenset[str], *, forced: bool = False, parallel: bool = True) -> PieceReader:
        """Reads one answer to ``prompt``. ``tools``: the names that were offered; ``forced``: a grammar wants a call;
        not ``parallel``: the first call only."""
        answer: PieceReader = _PlainReader()
        if tools:
            answer = self._calls_reader(tools, forced=forced)
            answer = answer if parallel else _FirstCallReader(answer)
        return ReasoningReader(answer, begun=self.begins_with_thoughts(prompt)) if self.thinks else answer

    def begins_with_thoughts(self, prompt: str) -> bool:
        """The prompt itself has opened them."""
        return self.thinks and prompt.rstrip().endswith(THINK)

    def _calls_reader(self, tools: frozenset[str], *, forced: bool) -> PieceReader:
        if self.calls == "hermes":
            return HermesReader()
        if self.calls == "mistral":
            return MistralReader()
        if self.calls == "pythonic" and not forced:
            return PythonicReader(tools)
        # Without a style of its own a model is not listened to, unless a grammar has made it call.
        return JsonCallsReader(tools) if forced or self.calls else _PlainReader()


class _PlainReader:
    """All is said."""

    def feed(self, text: str) -> list[Piece]:
        return [Content(text)] if text else []

    def finish(self) -> list[Piece]:
        return []


class _FirstCallReader:
    """Drops all calls but the first."""

    def __init__(self, reader: PieceReader) -> None:
        self._reader = reader

    def feed(self, text: str) -> list[Piece]:
        return self._kept(self._reader.feed(text))

    def finish(self) -> list[Piece]:
        return self._kept(self._reader.finish())

    def _kept(self, pieces: list[Piece]) -> list[Piece]:
        return [piece for piece in pieces if not getattr(piece, "index", 0)]

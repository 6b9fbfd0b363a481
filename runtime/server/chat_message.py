"""One answer of a chat while it grows: the model's text as a message's parts."""

import os
import random
import string
from collections.abc import Sequence

from pllm.runtime.message.pieces import CallArguments, CallStart, Content, Piece, PieceReader
from pllm.runtime.message.thought_tokens import ThoughtTokens
from pllm.runtime.server.protocol.answers import AnsweredCall, CalledFunction, ChatDelta, ChatMessage

__all__ = ["MessageText"]


class MessageText:
    """``reader`` tells the parts; ``short_ids``: call ids of nine letters, all that Mistral's templates take;
    ``thoughts`` counts the tokens of thoughts, None where the model has none."""

    def __init__(self, reader: PieceReader, *, short_ids: bool, thoughts: ThoughtTokens | None) -> None:
        self._reader = reader
        self._thoughts = thoughts
        self._short_ids = short_ids
        self.num_calls = 0

    @property
    def num_thought_tokens(self) -> int:
        """Tokens of thoughts so far."""
        return 0 if self._thoughts is None else self._thoughts.count

    def add(self, text: str, token_ids: Sequence[int], *, final: bool) -> ChatDelta:
        """What the text, made of these tokens, adds to the message; ``final``: nothing follows."""
        if self._thoughts is not None:
            self._thoughts.feed(token_ids)
        pieces = self._reader.feed(text) if text else []
        if final:
            pieces = pieces + self._reader.finish()
        return self._delta(pieces)

    def whole(self, text: str, token_ids: Sequence[int]) -> ChatMessage:
        """The message that all the text makes."""
        delta = self.add(text, token_ids, final=True)
        message = ChatMessage(delta.content)
        if delta.tool_calls:
            message.tool_calls = delta.tool_calls
            for call in delta.tool_calls:
                call.index = None
        elif delta.content is None:
            message.content = ""
        if delta.reasoning is not None:
            message.reasoning = message.reasoning_content = delta.reasoning
        return message

    def _delta(self, pieces: list[Piece]) -> ChatDelta:
        delta = ChatDelta()
        calls: dict[int, AnsweredCall] = {}
        for piece in pieces:
            match piece:
                case Content(text):
                    delta.content = (delta.content or "") + text
                case CallStart(index, name):
                    self.num_calls += 1
                    function = CalledFunction("", name)
                    calls[index] = AnsweredCall(function, index, self._new_call_id(), "function")
                case CallArguments(index, text):
                    call = calls.setdefault(index, AnsweredCall(CalledFunction(""), index))
                    call.function.arguments += text
                case _:
                    delta.reasoning = (delta.reasoning or "") + piece.text
        delta.reasoning_content = delta.reasoning
        delta.tool_calls = list(calls.values()) or None
        return delta

    def _new_call_id(self) -> str:
        if not self._short_ids:
            return f"call_{os.urandom(12).hex()}"
        return "".join(random.SystemRandom().choices(string.ascii_letters + string.digits, k=9))

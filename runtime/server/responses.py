"""``/v1/responses``: OpenAI's newer shape of a chat. What the chat API answers, as items and typed events."""

import time
from collections.abc import Iterable, Iterator
from typing import Any

import msgspec
from msgspec import UNSET

from pllm.runtime.errors import RequestError
from pllm.runtime.request_text import RequestText, TextDelta
from pllm.runtime.server.chat import ChatAnswer
from pllm.runtime.server.identity import new_id
from pllm.runtime.server.model import ServedModel
from pllm.runtime.server.protocol.answers import AnsweredCall, TokenLogprob
from pllm.runtime.server.protocol.errors import error_answer
from pllm.runtime.server.protocol.parse import Parsed
from pllm.runtime.server.protocol.response_answers import (
    IncompleteDetails,
    Response,
    ResponseEvent,
    ResponseFailure,
    TypedEvent,
    response_usage,
)
from pllm.runtime.server.protocol.response_request import ResponsesCall, in_our_words
from pllm.runtime.server.response_items import ResponseItems

__all__ = ["ResponseAnswer"]


class ResponseAnswer:
    """One response. `ChatAnswer` makes it; this class says it in this API's words."""

    last_words = b""

    def __init__(self, call: ResponsesCall, model: ServedModel) -> None:
        request = call.request
        try:
            self._chat = ChatAnswer(call.chat.request, model)
        except RequestError as error:
            raise in_our_words(error) from None
        self._items = ResponseItems()
        self._finish_reason: str | None = None
        self._has_calls = False  # what has no text from then on is their tokens
        params = self._chat.params
        self._response = Response(
            id=new_id("resp"),
            created_at=int(time.time()),
            model=model.name_for(request.model),
            instructions=request.instructions,
            max_output_tokens=request.max_output_tokens,
            metadata=request.metadata or {},
            output=self._items.items,
            parallel_tool_calls=request.parallel_tool_calls is not False,
            reasoning=request.reasoning,
            temperature=params.temperature,
            top_p=params.top_p,
            tool_choice=request.tool_choice or "auto",
            tools=[_given(tool) for tool in request.tools or ()],
            top_logprobs=request.top_logprobs or 0,
            user=request.user,
        )
        if request.text is not None and request.text.format is not None:
            self._response.text = {"format": _given(request.text.format)}

    @property
    def num_prompts(self) -> int:
        """A conversation is one prompt."""
        return self._chat.num_prompts

    @property
    def form_field(self) -> str:
        """The request's field that asks for a form."""
        field = self._chat.form_field
        return "text.format" if field == "response_format" else field

    def prepare(self, parsed: Parsed[ResponsesCall]) -> list[RequestText]:
        """The conversation through the chat template, as token ids."""
        try:
            return self._chat.prepare(parsed.request.chat)
        except RequestError as error:
            raise in_our_words(error) from None

    def whole(self, texts: list[RequestText]) -> Response:
        """The response with all its items."""
        choice = self._chat.whole(texts).choices[0]
        self._finish_reason = choice.finish_reason
        logprobs = choice.logprobs.content if choice.logprobs is not None else []
        message = choice.message
        thoughts = None if message.reasoning is UNSET else message.reasoning
        calls = None if message.tool_calls is UNSET else message.tool_calls
        for _ in self._add(thoughts, message.content, logprobs, calls):
            pass
        for _ in self._items.finish(self._item_status):
            pass
        return self._ended(texts)

    def opening(self, texts: list[RequestText]) -> Iterable[msgspec.Struct]:  # noqa: ARG002  (as for other answers)
        """The response has been taken, and has begun."""
        for what in ("created", "in_progress"):
            yield self._event(what)

    def chunk(self, texts: list[RequestText], number: int, delta: TextDelta) -> Iterable[msgspec.Struct]:
        """What is new in the items."""
        for chunk in self._chat.chunk(texts, number, delta):
            for choice in chunk.choices:
                logprobs = choice.logprobs.content if choice.logprobs is not None else []
                new = choice.delta
                yield from self._add(new.reasoning, new.content or None, logprobs, new.tool_calls)
                if choice.finish_reason is not None:
                    self._finish_reason = choice.finish_reason

    def closing(self, texts: list[RequestText]) -> Iterable[msgspec.Struct]:
        """The last item is complete, and so is the response, with its usage."""
        if not self._items.items:
            yield from self._items.add_text("", [])
        yield from self._items.finish(self._item_status)
        response = self._ended(texts)
        yield self._event(response.status)

    def failed(self, error: Exception) -> Iterator[TypedEvent]:
        """The response ends here, with what there is of it."""
        message = error_answer(error)[1].error.message
        self._response.status = "failed"
        self._response.error = ResponseFailure(message)
        yield self._event("failed")

    def _add(
        self, thoughts: str | None, content: str | None, logprobs: list[TokenLogprob], calls: list[AnsweredCall] | None
    ) -> Iterator[TypedEvent]:
        """A message's parts as items, in the order in which models write them. Only text has log-probabilities."""
        if thoughts:
            yield from self._items.add_reasoning(thoughts)
        if content is not None or (logprobs and not thoughts and not calls and not self._has_calls):
            yield from self._items.add_text(content or "", logprobs)
        for call in calls or ():
            if call.id is not None:
                self._has_calls = True
                yield from self._items.begin_call(call.id, call.function.name or "")
            if call.function.arguments:
                yield from self._items.add_arguments(call.function.arguments)

    @property
    def _item_status(self) -> Any:
        return "incomplete" if self._finish_reason == "length" else "completed"

    def _ended(self, texts: list[RequestText]) -> Response:
        response = self._response
        response.status = self._item_status
        if response.status == "incomplete":
            response.incomplete_details = IncompleteDetails()
        response.completed_at = int(time.time())
        response.usage = response_usage(self._chat.usage(texts))
        return response

    def _event(self, what: str) -> ResponseEvent:
        return ResponseEvent(type=f"response.{what}", sequence_number=self._items.number(), response=self._response)


def _given(struct: msgspec.Struct) -> dict[str, Any]:
    """A part of the request as the response repeats it."""
    return {name: value for name, value in msgspec.structs.asdict(struct).items() if value is not None}

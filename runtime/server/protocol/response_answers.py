"""What ``/v1/responses`` answers: a response with its items, and the typed events of its stream."""

from typing import Any, Literal

import msgspec

from pllm.runtime.server.protocol.answers import TokenLogprob, Usage

__all__ = [
    "ArgumentsDelta",
    "ArgumentsDone",
    "FunctionCallItem",
    "IncompleteDetails",
    "InputTokensDetails",
    "Item",
    "ItemEvent",
    "MessageItem",
    "OutputText",
    "OutputTokensDetails",
    "PartEvent",
    "ReasoningDelta",
    "ReasoningDone",
    "ReasoningItem",
    "ReasoningText",
    "Response",
    "ResponseEvent",
    "ResponseFailure",
    "ResponseUsage",
    "TextDeltaEvent",
    "TextDone",
    "TypedEvent",
    "response_usage",
]

Status = Literal["in_progress", "completed", "incomplete"]


class OutputText(msgspec.Struct, tag="output_text", kw_only=True):
    """The text of a message."""

    text: str
    annotations: tuple[()] = ()
    logprobs: list[TokenLogprob] = msgspec.field(default_factory=list)


class ReasoningText(msgspec.Struct, tag="reasoning_text", kw_only=True):
    """What the model thought before it answered."""

    text: str


class MessageItem(msgspec.Struct, tag="message", kw_only=True):
    """What the model says."""

    id: str
    status: Status = "in_progress"
    role: Literal["assistant"] = "assistant"
    content: list[OutputText] = msgspec.field(default_factory=list)


class ReasoningItem(msgspec.Struct, tag="reasoning", kw_only=True):
    """What it thought."""

    id: str
    status: Status = "in_progress"
    summary: tuple[()] = ()
    content: list[ReasoningText] = msgspec.field(default_factory=list)


class FunctionCallItem(msgspec.Struct, tag="function_call", kw_only=True):
    """A function that it wants called; ``arguments`` is JSON text."""

    id: str
    call_id: str
    name: str
    arguments: str = ""
    status: Status = "in_progress"


Item = MessageItem | ReasoningItem | FunctionCallItem


class InputTokensDetails(msgspec.Struct, frozen=True):
    """How many of the prompt's tokens came from the prefix cache. Writing to it costs nothing, and is not counted."""

    cached_tokens: int
    cache_write_tokens: int = 0


class OutputTokensDetails(msgspec.Struct, frozen=True):
    """How many of the answer's tokens were thoughts, the marker that ends them included."""

    reasoning_tokens: int


class ResponseUsage(msgspec.Struct, frozen=True):
    """Tokens read and written."""

    input_tokens: int
    input_tokens_details: InputTokensDetails
    output_tokens: int
    output_tokens_details: OutputTokensDetails
    total_tokens: int


class IncompleteDetails(msgspec.Struct, frozen=True):
    """Why an answer ends early."""

    reason: Literal["max_output_tokens"] = "max_output_tokens"


class ResponseFailure(msgspec.Struct, frozen=True):
    """Why there is none."""

    message: str
    code: str = "server_error"


class Response(msgspec.Struct, kw_only=True):
    """The answer of ``/v1/responses``, and the response inside its events."""

    id: str
    object: Literal["response"] = "response"
    created_at: int
    completed_at: int | None = None
    status: Literal["in_progress", "completed", "incomplete", "failed"] = "in_progress"
    error: ResponseFailure | None = None
    incomplete_details: IncompleteDetails | None = None
    instructions: str | None = None
    max_output_tokens: int | None = None
    metadata: dict[str, str] = msgspec.field(default_factory=dict)
    model: str
    output: list[Item] = msgspec.field(default_factory=list)
    parallel_tool_calls: bool = True
    previous_response_id: None = None
    reasoning: dict[str, Any] | None = None
    store: Literal[False] = False
    background: Literal[False] = False
    temperature: float
    text: dict[str, Any] = msgspec.field(default_factory=lambda: {"format": {"type": "text"}})
    tool_choice: Any = "auto"
    tools: list[dict[str, Any]] = msgspec.field(default_factory=list)
    top_logprobs: int = 0
    top_p: float
    truncation: Literal["disabled"] = "disabled"
    usage: ResponseUsage | None = None
    user: str | None = None


class TypedEvent(msgspec.Struct, kw_only=True):
    """An event of the stream. ``sequence_number`` counts a stream's events from 0."""

    type: str
    sequence_number: int


class ResponseEvent(TypedEvent, kw_only=True):
    """The response as a whole has changed its state: response.created, in_progress, completed, incomplete, failed."""

    response: Response


class ItemEvent(TypedEvent, kw_only=True):
    """An item begins or is complete: response.output_item.added, response.output_item.done."""

    output_index: int
    item: Item


class PartEvent(TypedEvent, kw_only=True):
    """A part of an item begins or is complete: response.content_part.added, response.content_part.done."""

    item_id: str
    output_index: int
    content_index: int
    part: OutputText | ReasoningText


class TextDeltaEvent(TypedEvent, kw_only=True):
    """response.output_text.delta"""

    item_id: str
    output_index: int
    content_index: int
    delta: str
    logprobs: list[TokenLogprob]


class TextDone(TypedEvent, kw_only=True):
    """response.output_text.done"""

    item_id: str
    output_index: int
    content_index: int
    text: str
    logprobs: list[TokenLogprob]


class ReasoningDelta(TypedEvent, kw_only=True):
    """response.reasoning_text.delta"""

    item_id: str
    output_index: int
    content_index: int
    delta: str


class ReasoningDone(TypedEvent, kw_only=True):
    """response.reasoning_text.done"""

    item_id: str
    output_index: int
    content_index: int
    text: str


class ArgumentsDelta(TypedEvent, kw_only=True):
    """response.function_call_arguments.delta"""

    item_id: str
    output_index: int
    delta: str


class ArgumentsDone(TypedEvent, kw_only=True):
    """response.function_call_arguments.done"""

    item_id: str
    output_index: int
    name: str
    arguments: str


def response_usage(usage: Usage) -> ResponseUsage:
    """The chat API's counts under this API's names."""
    return ResponseUsage(
        usage.prompt_tokens,
        InputTokensDetails(usage.prompt_tokens_details.cached_tokens),
        usage.completion_tokens,
        OutputTokensDetails(usage.completion_tokens_details.reasoning_tokens),
        usage.total_tokens,
    )

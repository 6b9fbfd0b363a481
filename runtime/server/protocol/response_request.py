"""What ``POST /v1/responses`` takes, and the chat request that it comes to.

OpenAI's newer API says what the chat API says in other words. It is translated, not served beside it: so the two have
the same fields, the same limits and the same errors, and what one learns the other knows.
"""

from collections.abc import Iterator
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from pllm.runtime.errors import RequestError
from pllm.runtime.server.protocol.parse import Parsed, parse
from pllm.runtime.server.protocol.requests import ChatCompletionRequest, GenerationRequest, MaxTokens, Name

__all__ = ["InputItem", "InputPart", "ResponsesCall", "ResponsesRequest", "in_our_words", "translated"]

_LOGPROBS = "message.output_text.logprobs"
_STATELESS = "is not supported: this server keeps no responses. Send the whole conversation in 'input'"


class InputPart(msgspec.Struct, kw_only=True):
    """A piece of an item's content. Only text is read; other types are refused by name."""

    type: str
    text: str | None = None
    refusal: str | None = None


class InputItem(msgspec.Struct, kw_only=True):
    """One item of the input: a message (with or without its type), a call, its output, or the reasoning before it.

    What an answer's ``output`` holds can be sent back as it is.
    """

    type: Literal["message", "function_call", "function_call_output", "reasoning"] | None = None
    role: Literal["system", "developer", "user", "assistant"] | None = None
    content: str | list[InputPart] | None = None
    call_id: str | None = None
    name: Name | None = None
    arguments: str | None = None
    output: str | list[InputPart] | None = None
    summary: list[InputPart] | None = None
    id: str | None = None
    status: str | None = None


class ResponseTool(msgspec.Struct, kw_only=True):
    """A tool; functions are the only kind. Unlike in the chat API its fields stand beside ``type``."""

    type: Literal["function"]
    name: Name
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class ResponseToolChoice(msgspec.Struct, kw_only=True):
    """``tool_choice`` naming a function."""

    type: Literal["function"]
    name: Name


class TextFormat(msgspec.Struct, kw_only=True):
    """The form of the answer; for ``json_schema`` the schema's fields stand beside ``type``."""

    type: Literal["text", "json_object", "json_schema"]
    name: str | None = None
    schema: dict[str, Any] | None = None
    description: str | None = None
    strict: bool | None = None


class TextConfig(msgspec.Struct, kw_only=True):
    """``verbosity`` is taken and left alone."""

    format: TextFormat | None = None
    verbosity: str | None = None


class ResponsesRequest(GenerationRequest, kw_only=True):
    """``POST /v1/responses``. Nothing is kept: ``store`` is taken and left alone, and nothing can be referred to."""

    input: str | Annotated[list[InputItem], Meta(min_length=1, max_length=65536)]
    n: Annotated[int, Meta(ge=1, le=1)] | None = None
    instructions: str | None = None
    max_output_tokens: MaxTokens | None = None
    top_logprobs: Annotated[int, Meta(ge=0, le=20)] | None = None
    include: Annotated[list[str], Meta(max_length=64)] | None = None
    text: TextConfig | None = None
    tools: Annotated[list[ResponseTool], Meta(max_length=1024)] | None = None
    tool_choice: Literal["none", "auto", "required"] | ResponseToolChoice | None = None
    parallel_tool_calls: bool | None = None
    max_tool_calls: Annotated[int, Meta(ge=1)] | None = None
    reasoning: dict[str, Any] | None = None
    truncation: Literal["auto", "disabled"] | None = None
    background: bool | None = None
    previous_response_id: str | None = None
    conversation: str | dict[str, Any] | None = None
    metadata: dict[str, str] | None = None
    chat_template_kwargs: Annotated[dict[str, Any], Meta(max_length=64)] | None = None


_SAME = frozenset(GenerationRequest.__struct_fields__) - {"prompt_logprobs", "stream_options"} | {
    "chat_template_kwargs",
    "parallel_tool_calls",
}
# Where the chat API's names stand for something, ours do: for errors. The longest first.
_OUR_NAMES = {
    "max_completion_tokens": "max_output_tokens",
    "response_format": "text.format",
    "messages": "input",
}


class ResponsesCall(msgspec.Struct, frozen=True):
    """A request in both APIs' words."""

    request: ResponsesRequest
    chat: Parsed[ChatCompletionRequest]

    @property
    def stream(self) -> bool | None:
        """Whether events are asked for."""
        return self.request.stream


def translated(parsed: Parsed[ResponsesRequest]) -> Parsed[ResponsesCall]:
    """The request, and the same in the chat API's words. Raises RequestError with a field of this API."""
    return Parsed(ResponsesCall(parsed.request, _chat_of(parsed)), {}, parsed.unknown)


def _chat_of(parsed: Parsed[ResponsesRequest]) -> Parsed[ChatCompletionRequest]:
    request = parsed.request
    _refuse(request)
    body: dict[str, Any] = {name: parsed.raw[name] for name in _SAME & parsed.raw.keys()}
    body["messages"] = list(_messages(request))
    body["max_completion_tokens"] = request.max_output_tokens
    if request.top_logprobs is not None or _LOGPROBS in (request.include or ()):
        body["logprobs"] = True
        body["top_logprobs"] = request.top_logprobs
    if request.tools:
        body["tools"] = [{"type": "function", "function": _given(tool, without=("type",))} for tool in request.tools]
    choice = request.tool_choice
    body["tool_choice"] = (
        {"type": "function", "function": {"name": choice.name}} if isinstance(choice, ResponseToolChoice) else choice
    )
    if request.text is not None and request.text.format is not None:
        body["response_format"] = _response_format(request.text.format)
    if request.reasoning is not None and request.reasoning.get("effort") is not None:
        body["reasoning_effort"] = request.reasoning["effort"]
    given = {name: value for name, value in body.items() if value is not None}
    try:
        return parse(msgspec.json.encode(given), ChatCompletionRequest)
    except RequestError as error:
        raise in_our_words(error) from None


def in_our_words(error: RequestError) -> RequestError:
    """An error of the chat API with the names that this API has for the same fields."""
    message, param = error.message, error.param
    for theirs, ours in _OUR_NAMES.items():
        message = message.replace(f"'{theirs}", f"'{ours}")
        if param is not None and param.startswith(theirs):
            param = ours if ours == "input" else ours + param.removeprefix(theirs)
    return RequestError(message, param=param, code=error.code)


def _refuse(request: ResponsesRequest) -> None:
    """What would need state, or would change an answer in a way that this server does not know."""
    for name in ("previous_response_id", "conversation"):
        if getattr(request, name):
            raise RequestError(f"'{name}' {_STATELESS}.", param=name, code="unsupported_parameter")
    if request.background:
        raise RequestError(f"'background' {_STATELESS}.", param="background", code="unsupported_parameter")
    if request.truncation == "auto":
        raise RequestError(
            "'truncation' can be 'disabled' only: this server never drops a part of a conversation.",
            param="truncation",
            code="unsupported_parameter",
        )
    if request.prompt_logprobs is not None:
        raise RequestError(
            "'prompt_logprobs' has no place in a response: ask /v1/completions for it.",
            param="prompt_logprobs",
            code="unsupported_parameter",
        )


def _messages(request: ResponsesRequest) -> Iterator[dict[str, Any]]:
    """The conversation as chat messages: calls belong to the assistant's message before them, reasoning to the next."""
    if request.instructions:
        yield {"role": "system", "content": request.instructions}
    if isinstance(request.input, str):
        yield {"role": "user", "content": request.input}
        return
    assistant: dict[str, Any] | None = None  # the assistant's message that is still growing
    for i, item in enumerate(request.input):
        kind = item.type or "message"
        is_assistant = kind in ("function_call", "reasoning") or (kind == "message" and item.role == "assistant")
        if assistant is not None and (not is_assistant or (kind != "function_call" and _is_whole(assistant))):
            yield assistant
            assistant = None
        if is_assistant:
            assistant = assistant or {"role": "assistant"}
        if kind == "function_call":
            assert assistant is not None
            function = {
                "name": _needed(item.name, i, "name"),
                "arguments": _needed(item.arguments, i, "arguments"),
            }
            call = {"id": _needed(item.call_id, i, "call_id"), "type": "function", "function": function}
            assistant.setdefault("tool_calls", []).append(call)
        elif kind == "reasoning":
            assert assistant is not None
            parts = item.content if isinstance(item.content, list) else item.summary or []
            assistant["reasoning_content"] = "".join(part.text or "" for part in parts)
        elif kind == "function_call_output":
            output = _content(_needed(item.output, i, "output"), f"input[{i}].output")
            yield {"role": "tool", "tool_call_id": _needed(item.call_id, i, "call_id"), "content": output}
        else:
            content = _content(_needed(item.content, i, "content"), f"input[{i}].content")
            if is_assistant:
                assert assistant is not None
                assistant["content"] = content
            else:
                yield {"role": _needed(item.role, i, "role"), "content": content}
    if assistant is not None:
        yield assistant


def _is_whole(assistant: dict[str, Any]) -> bool:
    return "content" in assistant or "tool_calls" in assistant


def _content(content: str | list[InputPart], place: str) -> str | list[dict[str, Any]]:
    if isinstance(content, str):
        return content
    for i, part in enumerate(content):
        if part.type not in ("input_text", "output_text", "text", "refusal"):
            raise RequestError(
                f"'{place}[{i}]' is of type {part.type[:64]!r}: this model reads text only.",
                param=f"{place}[{i}]",
                code="unsupported_content",
            )
    return [{"type": "text", "text": part.refusal if part.text is None else part.text} for part in content]


def _needed(value: Any, place: int, name: str) -> Any:
    if value is None:
        param = f"input[{place}].{name}"
        raise RequestError(f"Missing required field: '{param}'.", param=param, code="missing_required_parameter")
    return value


def _response_format(form: TextFormat) -> dict[str, Any]:
    if form.type != "json_schema":
        return {"type": form.type}
    return {"type": "json_schema", "json_schema": _given(form, without=("type",))}


def _given(struct: msgspec.Struct, *, without: tuple[str, ...]) -> dict[str, Any]:
    fields = msgspec.structs.asdict(struct)
    return {name: value for name, value in fields.items() if value is not None and name not in without}

"""A chat request's conversation as the chat template takes it."""

from typing import Any

from pllm.runtime.errors import RequestError
from pllm.runtime.server.protocol.parse import Parsed
from pllm.runtime.server.protocol.requests import ChatCompletionRequest, Message, TokenizeRequest

__all__ = ["conversation_of"]

_OURS = frozenset(
    {
        "add_generation_prompt",
        "chat_template",
        "continue_final_message",
        "documents",
        "messages",
        "self",
        "tokenize",
        "tools",
    }
)
_TEXT_PARTS = frozenset({"text", "input_text", "output_text", "refusal"})


def conversation_of(parsed: Parsed[ChatCompletionRequest] | Parsed[TokenizeRequest]) -> dict[str, Any]:
    """Keyword arguments for `Intake.chat_prompt`. Raises RequestError naming the field.

    Messages and tools reach the template as the client wrote them, keys that we do not know included: templates may.
    """
    request = parsed.request
    for i, message in enumerate(request.messages or ()):
        _check_message(message, f"messages[{i}]")
    variables = request.chat_template_kwargs or {}
    for name in _OURS & variables.keys():
        raise RequestError(
            f"'chat_template_kwargs' cannot set '{name}': use the request's own field, if it has one.",
            param=f"chat_template_kwargs.{name}",
            code="invalid_value",
        )
    tools = parsed.plain("tools") or None
    choice = getattr(request, "tool_choice", None)
    if choice == "none":
        tools = None  # what the model is not told of it cannot call
    generate = request.add_generation_prompt
    return {
        **variables,
        "messages": parsed.plain("messages"),
        "tools": tools,
        "add_generation_prompt": True if generate is None else generate,
    }


def _check_message(message: Message, place: str) -> None:
    if isinstance(message.content, list):
        for i, part in enumerate(message.content):
            if not isinstance(part, str) and part.type not in _TEXT_PARTS:
                raise RequestError(
                    f"'{place}.content[{i}]' is of type {part.type[:64]!r}: this model reads text only.",
                    param=f"{place}.content[{i}]",
                    code="unsupported_content",
                )
    if message.content is None and message.role != "assistant":
        raise RequestError(
            f"Missing required field: '{place}.content'.", param=f"{place}.content", code="missing_required_parameter"
        )

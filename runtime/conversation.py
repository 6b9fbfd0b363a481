"""Messages as clients send them, brought into the form that chat templates expect."""

import json
from collections.abc import Mapping
from typing import Any

from pllm.runtime.errors import RequestError

__all__ = ["readable_message", "text_parts"]

_TEXT_OF_PART = {"text": "text", "input_text": "text", "output_text": "text", "refusal": "refusal"}


def readable_message(message: Mapping[str, Any], *, in_parts: bool) -> Mapping[str, Any]:
    """A message with its content parts as parts of text (``in_parts``) or as the lines of one string, and the arguments
    of its tool calls as objects. Raises RequestError for content that is not text."""
    if not isinstance(message, Mapping):
        raise RequestError(f"A message must be an object with a role and content, not {message!r}.", param="messages")
    texts = text_parts(message.get("content"))
    if texts is not None:
        content = [{"type": "text", "text": text} for text in texts] if in_parts else "\n".join(texts)
        message = {**message, "content": content}
    calls = message.get("tool_calls")
    if isinstance(calls, list | tuple):
        message = {**message, "tool_calls": [_call_with_object(call) for call in calls]}
    return message


def text_parts(content: Any) -> list[str] | None:
    """The texts of a message's content parts, None where the content is one string or absent.

    Raises RequestError for a part that is not text.
    """
    if not isinstance(content, list | tuple):
        return None
    texts = []
    for part in content:
        kind = part.get("type") if isinstance(part, Mapping) else None
        text = part.get(_TEXT_OF_PART.get(str(kind), "")) if isinstance(part, Mapping) else part
        if not isinstance(text, str):
            cause = f"This model reads text only; it cannot take a content part of type {kind!r}."
            raise RequestError(cause, param="messages")
        texts.append(text)
    return texts


def _call_with_object(call: Any) -> Any:
    """Clients send a call's arguments as JSON text; templates write objects as JSON themselves."""
    function = call.get("function") if isinstance(call, Mapping) else None
    arguments = function.get("arguments") if isinstance(function, Mapping) else None
    if function is None or not isinstance(arguments, str):
        return call
    try:
        parsed = json.loads(arguments or "{}")
    except ValueError:
        return call
    return {**call, "function": {**function, "arguments": parsed}} if isinstance(parsed, dict) else call

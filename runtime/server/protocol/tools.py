"""Which tools a chat request offers, and which of them it demands."""

from collections.abc import Sequence
from typing import Any

import msgspec

from pllm.runtime.errors import RequestError
from pllm.runtime.message.call_grammar import CallableTool
from pllm.runtime.server.protocol.parse import Parsed
from pllm.runtime.server.protocol.requests import ChatCompletionRequest, NamedTool

__all__ = ["OfferedTools"]


class OfferedTools(msgspec.Struct, frozen=True):
    """``tools``: what may be called; ``demanded``: those of which one must be; none where the model may choose."""

    tools: tuple[CallableTool, ...] = ()
    demanded: tuple[CallableTool, ...] = ()
    parallel: bool = True
    is_named: bool = False

    @property
    def names(self) -> frozenset[str]:
        """What may be called."""
        return frozenset(tool.name for tool in self.tools)

    @classmethod
    def of(cls, parsed: Parsed[ChatCompletionRequest]) -> "OfferedTools":
        """Raises RequestError for a choice that the tools do not have."""
        request = parsed.request
        choice = request.tool_choice
        plain: Sequence[Any] = parsed.plain("tools") or ()
        tools = tuple(_callable(tool["function"]) for tool in plain)
        if choice == "none" or (choice in (None, "auto") and not tools):
            return cls()
        if not tools:
            raise RequestError("'tool_choice' needs 'tools'.", param="tool_choice", code="invalid_value")
        parallel = request.parallel_tool_calls is not False
        if isinstance(choice, NamedTool):
            named = tuple(tool for tool in tools if tool.name == choice.function.name)[:1]
            if not named:
                raise RequestError(
                    f"'tool_choice' names the function {choice.function.name[:64]!r}, which is not among 'tools'.",
                    param="tool_choice",
                    code="invalid_value",
                )
            return cls(tools, named, parallel=False, is_named=True)
        return cls(tools, tools if choice == "required" else (), parallel)


def _callable(function: dict[str, Any]) -> CallableTool:
    """A function without parameters takes none."""
    nothing = {"type": "object", "properties": {}, "additionalProperties": False}
    parameters = function.get("parameters") or nothing
    return CallableTool(function["name"], parameters, strict=function.get("strict") is True)

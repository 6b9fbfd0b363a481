"""How a conversation is written down: control tokens, tools, JSON, and the chat template, which says the same."""

import json
from pathlib import Path
from typing import Any

__all__ = [
    "CHAT_TEMPLATE",
    "CUT",
    "END_OF_TEXT",
    "IM_END",
    "IM_START",
    "TOOLS_AFTER",
    "TOOLS_BEFORE",
    "TOOL_CALL",
    "TOOL_CALL_END",
    "as_json",
]

IM_START, IM_END, END_OF_TEXT = "<|im_start|>", "<|im_end|>", "<|endoftext|>"
TOOL_CALL, TOOL_CALL_END = "<tool_call>", "</tool_call>"
CUT = "\x01"
"""Inside an answer, text on either side of this mark is tokenized separately. It never reaches the model. Reversed
words are marked between all letters, so the model writes them letter by letter."""

TOOLS_BEFORE = "# Tools\n\nYou can call these functions:\n<tools>"
TOOLS_AFTER = (
    "\n</tools>\n\nTo call one, answer with\n"
    f'{TOOL_CALL}\n{{"name": <function name>, "arguments": <arguments as JSON>}}\n{TOOL_CALL_END}'
)
CHAT_TEMPLATE = (Path(__file__).parent.parent / "chat_template.jinja").read_text(encoding="utf-8")


def as_json(value: Any) -> str:
    """JSON as the model writes it."""
    return json.dumps(value, ensure_ascii=False)

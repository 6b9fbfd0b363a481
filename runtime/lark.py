"""Pieces of grammars as text: Lark with llguidance's extensions (``%json``, tokens by their ids)."""

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

__all__ = ["json_form", "lark_regex", "lark_text", "lark_tokens", "unanchored"]

_WHITESPACE = {"whitespace_pattern": r"[\x20\x0A\x0D\x09]{1,16}"}
"""JSON's spaces and line ends, but not without end: a small model may never find out of them."""


def json_form(schema: Mapping[str, Any]) -> str:
    """A JSON schema as llguidance takes it, after ``%json`` in a Lark grammar too."""
    return json.dumps({**schema, "x-guidance": _WHITESPACE}, ensure_ascii=False)


def lark_text(text: str) -> str:
    """A literal."""
    return json.dumps(text)


def lark_tokens(token_ids: Sequence[int]) -> str:
    """Any one of these tokens; ``token_ids`` ascending, at least one."""
    ranges: list[list[int]] = []
    for token_id in token_ids:
        if ranges and ranges[-1][1] == token_id - 1:
            ranges[-1][1] = token_id
        else:
            ranges.append([token_id, token_id])
    return f"<[{','.join(f'{first}-{last}' for first, last in ranges)}]>"


def lark_regex(regex: str) -> str:
    """A regular expression as a terminal."""
    text = re.sub(r"\\.|/", lambda found: r"\/" if found[0] == "/" else found[0], unanchored(regex), flags=re.DOTALL)
    return "/" + text.replace("\n", r"\n").replace("\r", r"\r") + "/"


def unanchored(regex: str) -> str:
    """The expression without anchors around it: it is matched as a whole, so they say nothing."""
    regex = regex.removeprefix("^")
    if not regex.endswith("$"):
        return regex
    escapes = len(regex) - 1 - len(regex[:-1].rstrip("\\"))
    return regex if escapes % 2 else regex[:-1]

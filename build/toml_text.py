"""A writer for the little TOML that pllm writes: locks and nothing else (tomli only reads)."""

import json
from collections.abc import Mapping
from typing import Any

__all__ = ["toml_text"]


def toml_text(table: Mapping[str, Any]) -> str:
    """Strings, numbers, booleans, lists and nested tables as TOML, in the mapping's order; None is left out.

    The same mapping makes the same text, and parsing the text gives the mapping back.
    """
    return "\n".join(_lines(table, ())).lstrip("\n") + "\n"


def _lines(table: Mapping[str, Any], path: tuple[str, ...]) -> list[str]:
    plain = {key: value for key, value in table.items() if not isinstance(value, Mapping) and value is not None}
    lines: list[str] = []
    if path and (plain or not table):
        lines += ["", f"[{'.'.join(_key(part) for part in path)}]"]
    lines += [f"{_key(key)} = {_value(value)}" for key, value in plain.items()]
    for key, value in table.items():
        if isinstance(value, Mapping):
            lines += _lines(value, (*path, key))
    return lines


def _key(key: str) -> str:
    bare = key.isascii() and key.replace("-", "").replace("_", "").isalnum()
    return key if bare else _string(key)


def _value(value: Any) -> str:
    if isinstance(value, str):
        return _string(value)
    if isinstance(value, (bool, int, float)):
        text = json.dumps(value)
        return {"Infinity": "inf", "-Infinity": "-inf", "NaN": "nan"}.get(text, text)
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(_value(item) for item in value)}]"
    if isinstance(value, Mapping):
        return f"{{ {', '.join(f'{_key(key)} = {_value(item)}' for key, item in value.items())} }}"
    raise TypeError(f"TOML has no {type(value).__name__}")


def _string(text: str) -> str:
    """JSON's strings are TOML's basic strings, but for DEL and for surrogate pairs: so those are not escaped."""
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")

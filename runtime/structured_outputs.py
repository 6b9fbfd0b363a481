"""StructuredOutputsParams: the form that an answer must have. Names and meanings are vLLM's."""

import json
from collections.abc import Iterable, Mapping
from itertools import islice
from typing import Any

import msgspec

from pllm.runtime.errors import RequestError

__all__ = ["MAX_GRAMMAR_CHARACTERS", "StructuredOutputsParams"]

MAX_GRAMMAR_CHARACTERS = 1 << 18
"""Of a schema, an expression, a grammar, or all choices together."""

MAX_CHOICES = 4096

_KINDS = ("json", "json_object", "regex", "choice", "grammar")


class StructuredOutputsParams(
    msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True
):
    """Exactly one form. A value that cannot be one raises `RequestError`; whether it compiles is found out later.

    Every field ends as text, so that equal forms are equal keys.
    """

    json: str | dict[str, Any] | None = None  # a JSON schema, as an object or as JSON text; kept as text
    json_object: bool | None = None  # True: any JSON object
    regex: str | None = None  # the whole answer matches it; Rust's syntax, without look-around
    choice: tuple[str, ...] | None = None  # the answer is one of these
    grammar: str | None = None  # Lark, as llguidance reads it, or GBNF (``root ::= ...``)

    def __post_init__(self) -> None:
        given = [name for name in _KINDS if getattr(self, name) not in (None, False)]
        if len(given) != 1:
            told = "none is given" if not given else f"{' and '.join(given)} are given"
            raise _refusal(f"structured_outputs takes exactly one of {', '.join(_KINDS)}: {told}")
        kind = given[0]
        value: object = getattr(self, kind)
        if kind == "json":
            value = _schema_text(value)
        elif kind == "json_object":
            value = _exactly_true(value)
        elif kind == "choice":
            value = _choices(value)
        elif not isinstance(value, str) or not value:
            raise _refusal(f"structured_outputs.{kind} must be a text that is not empty")
        size = sum(map(len, value)) if isinstance(value, tuple) else len(value) if isinstance(value, str) else 0
        if size > MAX_GRAMMAR_CHARACTERS:
            raise _refusal(
                f"structured_outputs.{kind} has {size} characters; at most {MAX_GRAMMAR_CHARACTERS} are taken"
            )
        msgspec.structs.force_setattr(self, kind, value)


def _refusal(message: str) -> RequestError:
    return RequestError(message, param="structured_outputs", code="invalid_value")


def _schema_text(value: object) -> str:
    if isinstance(value, str):
        if len(value) > MAX_GRAMMAR_CHARACTERS:
            return value  # refused by its size
        try:
            value = json.loads(value)
        except (ValueError, RecursionError) as error:
            raise _refusal(f"structured_outputs.json is not JSON: {error}") from None
    if not isinstance(value, Mapping):
        raise _refusal("structured_outputs.json must be a JSON schema: an object")
    try:
        return json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    except (TypeError, ValueError, RecursionError) as error:
        raise _refusal(f"structured_outputs.json is no JSON schema: {error}") from None


def _exactly_true(value: object) -> bool:
    if value is not True:
        raise _refusal("structured_outputs.json_object must be true or false")
    return True


def _choices(value: object) -> tuple[str, ...]:
    if isinstance(value, str | bytes | Mapping) or not isinstance(value, Iterable):
        raise _refusal("structured_outputs.choice must be a list of texts")
    choices = tuple(islice(value, MAX_CHOICES + 1))
    if not 0 < len(choices) <= MAX_CHOICES or not all(isinstance(choice, str) and choice for choice in choices):
        raise _refusal(f"structured_outputs.choice must be 1 to {MAX_CHOICES} texts that are not empty")
    return choices

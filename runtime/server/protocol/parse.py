"""From the bytes of a request to its fields, or to a 400 that names the field at fault.

Three kinds of fields that the types do not name: those that cannot change an answer are taken and left alone; those
that would, and that this server does not serve, are refused by name; those that nobody knows are left alone and
reported.
"""

import re
from collections.abc import Callable, Hashable, Mapping
from functools import cache
from typing import Any, Final, Generic, TypeVar, cast

import msgspec

from pllm.runtime.errors import RequestError

__all__ = ["Parsed", "nearest_field", "parse"]

T = TypeVar("T")

_PLACE: Final = re.compile(r"^(?P<what>.*) - at `\$(?P<path>.*)`$", re.DOTALL)
_MISSING: Final = re.compile(r"^Object missing required field `(?P<name>[^`]*)`$")
_NO_JSON: Final = "The request body is not valid JSON: {}."

_MOST_NESTED: Final = 250_000  # arrays and objects, and likewise keys
_MOST_VALUES: Final = 2_500_000
_MOST_FIELDS: Final = 512
"""Decoding holds the whole process: what would take seconds and gigabytes is told by its punctuation before. A text
that holds so much of it is longer than any context."""

_WITHOUT_EFFECT: Final = frozenset(
    {
        "include_reasoning",
        "metadata",
        "prediction",
        "prompt_cache_key",
        "prompt_cache_options",
        "prompt_cache_retention",
        "reasoning_effort",
        "request_id",
        "safety_identifier",
        "service_tier",
        "store",
        "user",
        "verbosity",
    }
)
"""OpenAI's and vLLM's fields that cannot change this server's answer."""


def _nothing(value: Any) -> bool:
    return value in (None, False, "", [], {})


def _is_one(value: Any) -> bool:
    return value is None or value == 1


_TEXT_ONLY = "is not supported: this model reads and writes text only"
_NOT_HERE = "is not supported by this server; leave it out"

_REFUSED: Final[Mapping[str, tuple[Callable[[Any], bool], str]]] = {
    "structural_tag": (_nothing, "is not supported: use response_format, structured_outputs or tools"),
    "modalities": (lambda value: value in (None, ["text"]), _TEXT_ONLY),
    **dict.fromkeys(("audio", "mm_processor_kwargs", "media_io_kwargs"), (_nothing, _TEXT_ONLY)),
    **dict.fromkeys(("functions", "function_call"), (_nothing, "is not supported: use tools and tool_choice")),
    "echo": (_nothing, "is not supported in a chat; /v1/completions has it"),
    "add_special_tokens": (_nothing, "is not supported in a chat: its template writes them"),
    "chat_template": (_nothing, "is not taken from requests: the operator gives one at start, with --chat-template"),
    **dict.fromkeys(("best_of", "length_penalty"), (_is_one, _NOT_HERE)),
    **dict.fromkeys(
        (
            "continue_final_message",
            "documents",
            "kv_transfer_params",
            "logits_processors",
            "moderation",
            "prompt_embeds",
            "return_token_ids",
            "return_tokens_as_token_ids",
            "suffix",
            "truncate_prompt_tokens",
            "use_beam_search",
            "vllm_xargs",
            "web_search_options",
        ),
        (_nothing, _NOT_HERE),
    ),
}
"""Fields that would change the answer: the values that ask for nothing, and what to say to the others."""


class Parsed(msgspec.Struct, Generic[T], frozen=True):
    """A request, its top-level fields as they were written, and the names among them that nobody knows."""

    request: T
    raw: dict[str, msgspec.Raw]
    unknown: tuple[str, ...]

    def plain(self, field: str) -> Any:
        """A field as the client wrote it, as plain lists and dicts; None where it was not given."""
        raw = self.raw.get(field)
        return None if raw is None else _plain(raw, field)


@cache
def _decoder_of(kind: Hashable) -> msgspec.json.Decoder[Any]:
    return msgspec.json.Decoder(kind)


def parse(body: bytes, kind: type[T], *, refuse_unknown: bool = False) -> Parsed[T]:
    """Decodes and checks a request body. Raises RequestError, with the field at fault where there is one."""
    _refuse_a_bomb(body)
    try:
        raw: dict[str, msgspec.Raw] = _decoder_of(dict[str, msgspec.Raw]).decode(body)
        if len(raw) > _MOST_FIELDS:
            raise RequestError(f"The request has {len(raw)} fields; at most {_MOST_FIELDS} are taken.")
        fields = _fields_of(cast(Hashable, kind))
        unknown = []
        for name in raw.keys() - fields:
            if name in _REFUSED:
                _refuse_unless_neutral(name, _plain(raw[name], name))
            elif name not in _WITHOUT_EFFECT:
                unknown.append(name)
        if unknown and refuse_unknown:
            nearest = nearest_field(unknown[0], kind)
            hint = "" if nearest is None else f" Did you mean '{nearest}'?"
            name = unknown[0][:64]
            raise RequestError(f"Unknown field: {name!r}.{hint}", param=name, code="unknown_field")
        request: T = _decoder_of(cast(Hashable, kind)).decode(body)
    except msgspec.ValidationError as error:
        raise _invalid_value(str(error)) from None
    except UnicodeError as error:
        raise RequestError(_NO_JSON.format(f"it is not UTF-8 ({error.__class__.__name__})")) from None
    except msgspec.DecodeError as error:
        raise RequestError(_NO_JSON.format(str(error).rstrip("."))) from None
    except RecursionError:
        raise RequestError(_NO_JSON.format("it is nested too deeply")) from None
    return Parsed(request, raw, tuple(sorted(unknown)))


def _plain(raw: msgspec.Raw, field: str) -> Any:
    """A field as plain data, also what the types pass over in it."""
    try:
        return msgspec.json.decode(raw)
    except msgspec.DecodeError as error:  # a number that Python's C types cannot hold
        message = f"Invalid value in '{field}': {str(error).rstrip('.').lower()}."
        raise RequestError(message, param=field, code="invalid_value") from None


def _refuse_a_bomb(body: bytes) -> None:
    for signs, most, what in (
        (b"[{", _MOST_NESTED, "arrays and objects"),
        (b":", _MOST_NESTED, "keys"),
        (b",", _MOST_VALUES, "values"),
    ):
        if len(body) > most and sum(body.count(sign) for sign in signs) > most:
            raise RequestError(f"The request body holds more than {most} {what}: send less at once.")


def _refuse_unless_neutral(name: str, value: Any) -> None:
    asks_for_nothing, reason = _REFUSED[name]
    if not asks_for_nothing(value):
        raise RequestError(f"'{name}' {reason}.", param=name, code="unsupported_parameter")


def _invalid_value(text: str) -> RequestError:
    """msgspec's sentence as ours, with the place as the parameter."""
    match = _PLACE.match(text)
    what, path = (match["what"], match["path"].lstrip(".")) if match else (text, "")
    path = path.removesuffix("[...]")
    missing = _MISSING.match(what)
    if missing:
        param = f"{path}.{missing['name']}" if path else missing["name"]
        return RequestError(f"Missing required field: '{param}'.", param=param, code="missing_required_parameter")
    if not path:
        return RequestError(f"The request body must be a JSON object: {what[0].lower()}{what[1:]}.")
    return RequestError(f"Invalid value for '{path}': {what[0].lower()}{what[1:]}.", param=path, code="invalid_value")


@cache
def _fields_of(kind: Hashable) -> frozenset[str]:
    return frozenset(field.encode_name for field in msgspec.structs.fields(cast(type[msgspec.Struct], kind)))


def nearest_field(name: str, kind: type) -> str | None:
    """The known field that an unknown one was probably meant to be; None if nothing is near."""
    from difflib import get_close_matches  # noqa: PLC0415  (only needed to answer a mistake)

    return next(
        iter(get_close_matches(name[:64], _fields_of(cast(Hashable, kind)) | _REFUSED.keys() | _WITHOUT_EFFECT, n=1)),
        None,
    )

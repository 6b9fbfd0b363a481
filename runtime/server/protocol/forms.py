"""The form that a request wants its answers to have, in any of the words that clients have for it."""

from collections.abc import Mapping
from typing import Any

import msgspec

from pllm.runtime.errors import RequestError
from pllm.runtime.server.protocol.requests import GenerationRequest, ResponseFormat
from pllm.runtime.structured_outputs import StructuredOutputsParams

__all__ = ["RequestedForm", "requested_form"]

_GUIDED = {
    "guided_json": "json",
    "guided_regex": "regex",
    "guided_choice": "choice",
    "guided_grammar": "grammar",
}
"""vLLM's older names."""


class RequestedForm(msgspec.Struct, frozen=True):
    """A form, and the request's field that asks for it."""

    params: StructuredOutputsParams
    field: str


def requested_form(request: GenerationRequest, shipped: Mapping[str, StructuredOutputsParams]) -> RequestedForm | None:
    """The request's one form; None where any text will do. Raises RequestError naming the field.

    ``shipped``: forms that a request may name instead of giving them.
    """
    found: list[tuple[str, Mapping[str, Any]]] = []
    if request.response_format is not None and request.response_format.type != "text":
        found.append(("response_format", _of_format(request.response_format, shipped)))
    if request.structured_outputs is not None:
        given = msgspec.structs.asdict(request.structured_outputs)
        if chosen := {name: value for name, value in given.items() if value not in (None, False)}:
            found.append(("structured_outputs", chosen))
    for name, kind in _GUIDED.items():
        if (value := getattr(request, name)) is not None:
            found.append((name, {kind: value}))
    if len(found) > 1:
        first, second = found[0][0], found[1][0]
        raise RequestError(
            f"'{first}' and '{second}' exclude each other: each says what form the answer has.",
            param=second,
            code="invalid_value",
        )
    if not found:
        return None
    field, fields = found[0]
    if len(fields) == 1 and not fields.keys().isdisjoint(("json", "grammar")):
        (value,) = fields.values()
        if isinstance(value, str) and value in shipped:
            return RequestedForm(shipped[value], field)
    try:
        return RequestedForm(StructuredOutputsParams(**fields), field)
    except RequestError as error:
        message = error.message.replace("structured_outputs", field, 1)
        raise RequestError(message, param=field, code=error.code) from None


def _of_format(given: ResponseFormat, shipped: Mapping[str, StructuredOutputsParams]) -> Mapping[str, Any]:
    if given.type == "json_object":
        return {"json_object": True}
    if given.json_schema is None:
        raise RequestError(
            "Missing required field: 'response_format.json_schema'.",
            param="response_format.json_schema",
            code="missing_required_parameter",
        )
    schema, name = given.json_schema.schema, given.json_schema.name
    if schema is None and name in shipped:
        return {"json": name}
    # A schema that is left out allows whatever JSON there is: OpenAI's own reading.
    return {"json": {} if schema is None else schema}

"""The API described by itself: an OpenAPI document made of the types that requests are checked against, and a page."""

from functools import cache
from html import escape
from typing import Any

import msgspec

from pllm import __version__
from pllm.runtime.server.protocol.answers import (
    ChatCompletion,
    Completion,
    Detokenized,
    ModelCard,
    ModelList,
    Tokenized,
    VersionAnswer,
)
from pllm.runtime.server.protocol.errors import ErrorAnswer
from pllm.runtime.server.protocol.requests import (
    ChatCompletionRequest,
    CompletionRequest,
    DetokenizeRequest,
    TokenizeRequest,
)
from pllm.runtime.server.protocol.response_answers import Response
from pllm.runtime.server.protocol.response_request import ResponsesRequest

__all__ = ["docs_page", "openapi_document"]

_ROUTES: tuple[tuple[str, str, str, type | None, type | str | None], ...] = (
    ("post", "/v1/chat/completions", "Continue a conversation", ChatCompletionRequest, ChatCompletion),
    ("post", "/v1/completions", "Continue a text", CompletionRequest, Completion),
    ("post", "/v1/responses", "Continue a conversation, as items", ResponsesRequest, Response),
    ("get", "/v1/models", "The names that this server answers to", None, ModelList),
    ("get", "/v1/models/{name}", "One of them", None, ModelCard),
    ("post", "/tokenize", "Text or a conversation as token ids", TokenizeRequest, Tokenized),
    ("post", "/detokenize", "Token ids as text", DetokenizeRequest, Detokenized),
    ("post", "/reset_prefix_cache", "Forget cached prefixes", None, None),
    ("get", "/health", "200 when requests are served, 503 when not", None, None),
    ("get", "/ready", "The same", None, None),
    ("get", "/version", "The server's version", None, VersionAnswer),
    ("get", "/metrics", "Counts for Prometheus", None, "text/plain"),
    ("get", "/openapi.json", "This document", None, "application/json"),
    ("get", "/docs", "A page of it", None, "text/html"),
    ("get", "/", "A page that chats and shows the engine", None, "text/html"),
)


_OPEN = ("/health", "/ready", "/")
_GENERATED = (ChatCompletion, Completion, Response)

_STYLE = (
    "body{font:16px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem}"
    "td{text-align:left;padding:.2rem 1rem .2rem 0;vertical-align:top}code{font-size:.9em}"
)


@cache
def openapi_document(root_path: str = "") -> dict[str, Any]:
    """The OpenAPI 3.1 document, as JSON's types. ``root_path``: the prefix under which clients see the server."""
    types = [kind for _, _, _, body, answer in _ROUTES for kind in (body, answer) if isinstance(kind, type)]
    _, schemas = msgspec.json.schema_components([*types, ErrorAnswer], ref_template="#/components/schemas/{name}")
    paths: dict[str, dict[str, Any]] = {}
    for method, path, summary, body, answer in _ROUTES:
        operation: dict[str, Any] = {"summary": summary, "responses": _responses(path, body, answer)}
        if body is not None:
            operation["requestBody"] = {"required": True, "content": {"application/json": {"schema": _reference(body)}}}
        if "{name}" in path:
            parameter = {"name": "name", "in": "path", "required": True, "schema": {"type": "string"}}
            operation["parameters"] = [parameter]
        if path not in _OPEN:
            operation["security"] = [{}, {"key": []}]
        paths.setdefault(path, {})[method] = operation
    return {
        "openapi": "3.1.0",
        "info": {"title": "pllm", "version": __version__, "summary": "OpenAI's API, and vLLM's additions to it."},
        "servers": [{"url": root_path or "/"}],
        "paths": paths,
        "components": {"schemas": schemas, "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}}},
    }


def _reference(kind: type) -> dict[str, str]:
    return {"$ref": f"#/components/schemas/{kind.__name__}"}


def _responses(path: str, body: type | None, answer: type | str | None) -> dict[str, Any]:
    content: dict[str, Any] = {}
    if isinstance(answer, str):
        content[answer] = {}
    elif answer is not None:
        content["application/json"] = {"schema": _reference(answer)}
    if answer in _GENERATED:
        content["text/event-stream"] = {}
    error = {"application/json": {"schema": _reference(ErrorAnswer)}}
    responses: dict[str, Any] = {"200": {"description": "The answer", **({"content": content} if content else {})}}
    if path == "/":
        return responses
    if path in _OPEN:
        return responses | {"503": {"description": "Not serving"}}
    failures = {"401": "No valid key"}
    if body is not None:
        failures |= {"400": "A field is at fault: it is named", "413": "Too large a body", "415": "No JSON"}
    if body is not None or "{name}" in path:
        failures["404"] = "No such model"
    if answer in _GENERATED:
        failures |= {"429": "Full: Retry-After says when to come back", "500": "The model failed on this request"}
    failures["503"] = "Starting, restarting or shutting down"
    return responses | {status: {"description": text, "content": error} for status, text in failures.items()}


@cache
def docs_page() -> str:
    """The document as one page of HTML, with nothing from outside and no script."""
    document = openapi_document()
    rows = "".join(
        _row(f"<code>{method.upper()}</code>", f"<code>{escape(path)}</code>", escape(operation["summary"]))
        for path, operations in document["paths"].items()
        for method, operation in operations.items()
    )
    fields = "".join(_fields_table(kind) for kind in (ChatCompletionRequest, CompletionRequest, ResponsesRequest))
    return (
        '<!doctype html><html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">'
        f"<title>pllm {__version__}</title><style>{_STYLE}</style>"
        f"<h1>pllm {__version__}</h1><p>OpenAI's API and vLLM's additions to it. In full: "
        f'<a href="openapi.json">openapi.json</a>.</p><table>{rows}</table>{fields}</html>'
    )


def _row(*cells: str) -> str:
    return f"<tr>{''.join(f'<td>{cell}</td>' for cell in cells)}</tr>"


def _fields_table(kind: type) -> str:
    schema = openapi_document()["components"]["schemas"][kind.__name__]
    rows = "".join(
        _row(f"<code>{escape(name)}</code>", f"<code>{escape(_shape(field))}</code>")
        for name, field in sorted(schema["properties"].items())
    )
    return f"<h2>{escape(kind.__name__)}</h2><p>{escape(schema.get('description', ''))}</p><table>{rows}</table>"


def _shape(field: dict[str, Any]) -> str:
    """A field's schema in a few words."""
    if "anyOf" in field:
        return " or ".join(_shape(part) for part in field["anyOf"] if part.get("type") != "null")
    if "$ref" in field:
        return str(field["$ref"]).rpartition("/")[2]
    if "enum" in field:
        return " | ".join(map(repr, field["enum"]))
    words = [str(field.get("type", "anything"))]
    if "items" in field and field["items"] is not False:
        words.append(f"of {_shape(field['items'])}")
    limits = (
        ("minimum", ">="),
        ("exclusiveMinimum", ">"),
        ("maximum", "<="),
        ("maxItems", "items <="),
        ("maxLength", "length <="),
    )
    words += [f"{sign} {field[key]}" for key, sign in limits if key in field]
    return " ".join(words)

"""One streamed completion as a client sees it: when its chunks came, and how many tokens they carried."""

import time
from collections.abc import Callable
from typing import Any

import msgspec

from pllm.runtime.bench.http_client import Endpoint, HttpError, request
from pllm.runtime.bench.timing import RequestTiming
from pllm.runtime.bench.workload import WorkloadRequest

__all__ = ["complete", "served_model"]

_MAX_EVENT = 1 << 20


class _Choice(msgspec.Struct):
    finish_reason: str | None = None


class _Usage(msgspec.Struct):
    completion_tokens: int


class _Event(msgspec.Struct):
    choices: list[_Choice] = []
    usage: _Usage | None = None
    error: Any = None


class _Model(msgspec.Struct):
    id: str


class _Models(msgspec.Struct):
    data: list[_Model]


_decode = msgspec.json.Decoder(_Event).decode


async def served_model(endpoint: Endpoint) -> str:
    """The name that the server gives its model. Raises HttpError."""
    async with request(endpoint, "GET", "/v1/models") as answer:
        body = await answer.body()
    if answer.status != 200:
        raise HttpError(f"GET /v1/models was answered with {answer.status}: {_excerpt(body)}")
    try:
        models = msgspec.json.decode(body, type=_Models).data
    except msgspec.DecodeError as error:
        raise HttpError(f"GET /v1/models was answered with something else than OpenAI's list: {error}") from error
    if not models:
        raise HttpError("the server serves no model")
    return models[0].id


async def complete(
    endpoint: Endpoint, model: str, wanted: WorkloadRequest, *, clock: Callable[[], float] = time.perf_counter
) -> RequestTiming:
    """Send one request and follow its stream to the end. Raises HttpError where it is refused, breaks off, or has
    another number of tokens than was asked for.

    Counts are asked for in every chunk (``continuous_usage_stats``): so a token that makes no text, half a character
    or an id without a spelling, is a chunk as well, and time to first token is what it says.
    """
    body = {
        "model": model,
        "prompt": wanted.prompt_token_ids,
        "max_tokens": wanted.num_output_tokens,
        "temperature": 0,
        "ignore_eos": True,
        "stream": True,
        "stream_options": {"include_usage": True, "continuous_usage_stats": True},
    }
    sent = clock()
    chunks: list[float] = []
    num_tokens, done, pending = 0, False, b""
    async with request(endpoint, "POST", "/v1/completions", body) as answer:
        if answer.status != 200:
            raise HttpError(f"the server answered with {answer.status}: {_excerpt(await answer.body())}")
        async for piece in answer.pieces():
            now = clock()
            *events, pending = (pending + piece).split(b"\n\n")
            if len(pending) > _MAX_EVENT:
                raise HttpError(f"the server sends an event of more than {_MAX_EVENT} bytes")
            for event in events:
                data = event.removeprefix(b"data: ")
                if data == b"[DONE]":
                    done = True
                    continue
                found = _event(data)
                if found.choices:
                    chunks.append(now)
                if found.usage is not None:
                    num_tokens = found.usage.completion_tokens
    if not done:
        raise HttpError("the stream ended without [DONE]")
    if not chunks:
        raise HttpError("the stream had no chunk with an answer in it")
    if num_tokens != wanted.num_output_tokens:
        raise HttpError(f"{num_tokens} tokens came instead of {wanted.num_output_tokens}")
    return RequestTiming(sent, tuple(chunks), num_tokens)


def _event(data: bytes) -> _Event:
    try:
        event = _decode(data)
    except msgspec.DecodeError as error:
        raise HttpError(f"an event of the stream is no completion ({error}): {_excerpt(data)}") from error
    if event.error is not None:
        raise HttpError(f"the stream failed: {event.error}")
    return event


def _excerpt(body: bytes) -> str:
    text = body[:300].decode(errors="replace").strip()
    return text or "nothing"

"""The way of a request that makes tokens: the same for chats and for plain prompts, streamed or whole."""

import asyncio
import logging
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from typing import Any, Protocol

import msgspec
from starlette.types import Receive, Scope, Send

from pllm.runtime.errors import PllmError
from pllm.runtime.request_text import RequestText, TextDelta
from pllm.runtime.server.body import until_gone
from pllm.runtime.server.generation import ClientGoneError, Generation
from pllm.runtime.server.model import ServedModel
from pllm.runtime.server.protocol.errors import HttpError
from pllm.runtime.server.protocol.parse import Parsed, nearest_field, parse
from pllm.runtime.server.protocol.requests import GenerationRequest
from pllm.runtime.server.protocol.response_answers import TypedEvent
from pllm.runtime.server.service import Service
from pllm.runtime.token_stream import TokenStream

__all__ = ["Answer", "GenerationEndpoint"]

_LOG = logging.getLogger("pllm.server")
_JSON = (b"content-type", b"application/json")
_EVENT_STREAM = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),  # a proxy that collects events defeats the stream
]


class Answer(Protocol):
    """One API call's shape: how its request becomes prompts, and how tokens become JSON. It keeps the
    parameters, not the prompt. ``last_words`` end its stream."""

    last_words: bytes

    def __init__(self, request: Any, model: ServedModel) -> None: ...

    @property
    def num_prompts(self) -> int:
        """How many prompts the request holds, known before any is tokenised."""

    @property
    def form_field(self) -> str:
        """The request's field that asks for the form of its answers; known once it is prepared."""

    def prepare(self, parsed: Parsed[Any]) -> list[RequestText]:
        """The requests for the engine, one a prompt. Raises RequestError. May run in a thread."""

    def whole(self, texts: list[RequestText]) -> msgspec.Struct:
        """The answer when nothing is streamed."""

    def opening(self, texts: list[RequestText]) -> Iterable[msgspec.Struct]:
        """The first events of a stream, before any token."""

    def chunk(self, texts: list[RequestText], number: int, delta: TextDelta) -> Iterable[msgspec.Struct]:
        """The events for what is new in answer ``number``; none where that is nothing to show."""

    def closing(self, texts: list[RequestText]) -> Iterable[msgspec.Struct]:
        """The last events, after all tokens."""

    def failed(self, error: Exception) -> Iterable[msgspec.Struct]:
        """The last events of a stream that cannot go on."""


class GenerationEndpoint:
    """An ASGI application for one kind of answer. ``translate`` says a parsed request in another API's words."""

    def __init__(
        self,
        service: Service,
        request_type: type[GenerationRequest],
        answer_type: type[Answer],
        translate: Callable[[Parsed[Any]], Parsed[Any]] | None = None,
    ) -> None:
        self._service = service
        self._request_type = request_type
        self._answer_type = answer_type
        self._translate = translate

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serves one request. What it raises before the first byte becomes an error answer around it (`edge`)."""
        service = self._service
        ready = service.ready()
        ready.admission.check_room()
        with ExitStack() as held:
            async with service.bodies.read(scope["headers"], receive) as body:
                parsed = await service.offload(len(body), self._parse, body)
                headers = _report_unknown(service, parsed, self._request_type)
                answer = self._answer_type(parsed.request, ready.model)
                held.enter_context(ready.admission.admit(answer.num_prompts))
                texts = await service.offload(len(body), answer.prepare, parsed)
                streamed = bool(parsed.request.stream)
            await service.check_form(texts[0].request, answer.form_field)
            del body, parsed  # a prompt may wait long: nothing but its tokens stays
            stream = service.engine.submit([text.request for text in texts])
            generation = Generation(texts, stream, ready.metrics)
            gone = asyncio.ensure_future(until_gone(receive))
            gone.add_done_callback(lambda _: stream.fail(ClientGoneError(), at_once=True))
            timer = self._timer(generation, stream)
            try:
                if streamed:
                    await _stream(generation, answer, headers, send)
                else:
                    while not generation.finished:
                        await generation.next()
                    await _send_json(send, headers, answer.whole(texts))
            finally:
                gone.cancel()
                if timer is not None:
                    timer.cancel()
                generation.close()

    def _timer(self, generation: Generation, stream: TokenStream) -> asyncio.TimerHandle | None:
        seconds = self._service.settings.request_timeout
        if seconds is None:
            return None
        return asyncio.get_running_loop().call_later(seconds, lambda: stream.fail(_out_of_time(generation, seconds)))

    def _parse(self, body: bytes) -> Parsed[Any]:
        refuse = self._service.settings.refuse_unknown_fields
        parsed = parse(body, self._request_type, refuse_unknown=refuse)
        return parsed if self._translate is None else self._translate(parsed)


def _out_of_time(generation: Generation, seconds: float) -> HttpError:
    """What never began may be tried again; what took too long would take as long again."""
    if not any(text.num_output_tokens for text in generation.texts):
        return HttpError(503, f"The request has waited for {seconds:g} s, the limit of this server. Try again later.")
    message = f"The answer was not complete after {seconds:g} s, the limit of this server: ask for fewer tokens."
    return HttpError(400, message, param="max_tokens", code="request_timeout")


async def _send_json(send: Send, headers: list[tuple[bytes, bytes]], answer: msgspec.Struct) -> None:
    body = msgspec.json.encode(answer)
    headers = [_JSON, (b"content-length", str(len(body)).encode()), *headers]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": body})


async def _stream(generation: Generation, answer: Answer, headers: list[tuple[bytes, bytes]], send: Send) -> None:
    """Server-sent events. The status waits for the first tokens: what fails before them is a plain error answer.

    While the socket is full ``send`` waits, and what the engine makes meanwhile goes out together.
    """
    texts = generation.texts
    news = await generation.next()
    await send({"type": "http.response.start", "status": 200, "headers": [*_EVENT_STREAM, *headers]})
    events = list(map(_event, answer.opening(texts)))
    try:
        while True:
            for number, delta in news:
                events.extend(map(_event, answer.chunk(texts, number, delta)))
            if generation.finished:
                events.extend(map(_event, answer.closing(texts)))
                break
            if events:
                await send({"type": "http.response.body", "body": b"".join(events), "more_body": True})
            events.clear()
            news = await generation.next()
    except ClientGoneError:
        raise
    except Exception as error:
        if not isinstance(error, PllmError):
            _LOG.exception("a stream failed")
        events.extend(map(_event, answer.failed(error)))
    events.append(answer.last_words)
    await send({"type": "http.response.body", "body": b"".join(events)})


def _event(value: msgspec.Struct) -> bytes:
    data = b"data: " + msgspec.json.encode(value) + b"\n\n"
    return b"event: " + value.type.encode() + b"\n" + data if isinstance(value, TypedEvent) else data


def _report_unknown(service: Service, parsed: Parsed[Any], kind: type) -> list[tuple[bytes, bytes]]:
    """The header that names ignored fields; and a line in the log."""
    if not parsed.unknown:
        return []
    for name in parsed.unknown[:16]:
        service.report_unknown(name, nearest_field(name, kind))
    names = ", ".join(ascii(name[:64])[1:-1] for name in parsed.unknown[:16])
    return [(b"x-pllm-ignored-fields", names.encode())]

"""The routes."""

from collections.abc import Awaitable, Callable

import msgspec
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response
from starlette.routing import Route, Router
from starlette.types import ASGIApp

from pllm import __version__
from pllm.runtime.metrics import CONTENT_TYPE
from pllm.runtime.server.chat import ChatAnswer
from pllm.runtime.server.completions import CompletionAnswer
from pllm.runtime.server.edge import Edge
from pllm.runtime.server.endpoint import GenerationEndpoint
from pllm.runtime.server.openapi import docs_page, openapi_document
from pllm.runtime.server.page import page, page_headers
from pllm.runtime.server.protocol.answers import Detokenized, Tokenized, VersionAnswer
from pllm.runtime.server.protocol.conversation import conversation_of
from pllm.runtime.server.protocol.errors import HttpError
from pllm.runtime.server.protocol.parse import parse
from pllm.runtime.server.protocol.requests import (
    ChatCompletionRequest,
    CompletionRequest,
    DetokenizeRequest,
    TokenizeRequest,
)
from pllm.runtime.server.protocol.response_request import ResponsesRequest, translated
from pllm.runtime.server.responses import ResponseAnswer
from pllm.runtime.server.service import Service

__all__ = ["build_app"]

Handler = Callable[[Request], Awaitable[Response]]


def build_app(service: Service) -> ASGIApp:
    """All that the server answers, as one ASGI application."""
    routes = [
        Route("/v1/chat/completions", GenerationEndpoint(service, ChatCompletionRequest, ChatAnswer), methods=["POST"]),
        Route(
            "/v1/responses",
            GenerationEndpoint(service, ResponsesRequest, ResponseAnswer, translated),
            methods=["POST"],
        ),
        Route("/v1/completions", GenerationEndpoint(service, CompletionRequest, CompletionAnswer), methods=["POST"]),
        *(Route(path, handler, methods=[method]) for method, path, handler in _Plain(service).routes()),
    ]
    patterns = {route.endpoint: route.path for route in routes}
    return Edge(Router(routes, redirect_slashes=False), service, patterns)


class _Plain:
    """The routes that make no tokens."""

    def __init__(self, service: Service) -> None:
        self._service = service

    def routes(self) -> list[tuple[str, str, Handler]]:
        return [
            ("GET", "/v1/models", self.models),
            ("GET", "/v1/models/{name:path}", self.model),
            ("POST", "/tokenize", self.tokenize),
            ("POST", "/detokenize", self.detokenize),
            ("POST", "/reset_prefix_cache", self.reset_prefix_cache),
            ("GET", "/health", self.health),
            ("GET", "/ready", self.ready),
            ("GET", "/version", self.version),
            ("GET", "/metrics", self.metrics),
            ("GET", "/openapi.json", self.openapi),
            ("GET", "/docs", self.docs),
            ("GET", "/", self.page),
        ]

    async def health(self, _: Request) -> Response:
        return Response(status_code=200 if self._service.is_ready else 503)

    async def ready(self, request: Request) -> Response:
        return await self.health(request)

    async def version(self, _: Request) -> Response:
        return _json(VersionAnswer(__version__))

    async def metrics(self, _: Request) -> Response:
        metrics = self._service.metrics()
        return Response(b"" if metrics is None else metrics.exposition(), media_type=CONTENT_TYPE)

    async def models(self, _: Request) -> Response:
        return _json(self._service.ready().model.models)

    async def model(self, request: Request) -> Response:
        return _json(self._service.ready().model.card(request.path_params["name"]))

    async def tokenize(self, request: Request) -> Response:
        model = self._service.ready().model

        def work(body: bytes) -> Tokenized:
            parsed = parse(body, TokenizeRequest)
            asked = parsed.request
            model.name_for(asked.model)
            if (asked.prompt is None) == (asked.messages is None):
                raise HttpError(400, "Give either 'prompt' or 'messages'.", param="prompt", code="invalid_value")
            tokenizer = model.intake.tokenizer
            if asked.prompt is None:
                ids = list(model.intake.chat_prompt(**conversation_of(parsed)).token_ids)
            else:
                ids = tokenizer.encode(asked.prompt, add_special_tokens=asked.add_special_tokens is not False)
            texts = [tokenizer.token_text(token_id) for token_id in ids] if asked.return_token_strs else None
            return Tokenized(len(ids), model.info.max_model_len, ids, texts)

        async with self._service.bodies.read(request.scope["headers"], request.receive) as body:
            return _json(await self._service.offload(len(body), work, body))

    async def detokenize(self, request: Request) -> Response:
        model = self._service.ready().model

        def work(body: bytes) -> Detokenized:
            asked = parse(body, DetokenizeRequest).request
            model.name_for(asked.model)
            model.intake.check_ids(asked.tokens, "tokens")
            return Detokenized(model.intake.tokenizer.decode(asked.tokens))

        async with self._service.bodies.read(request.scope["headers"], request.receive) as body:
            return _json(await self._service.offload(len(body), work, body))

    async def reset_prefix_cache(self, _: Request) -> Response:
        self._service.ready()
        self._service.engine.reset_prefix_cache()
        return Response()

    async def openapi(self, _: Request) -> Response:
        return Response(
            msgspec.json.encode(openapi_document(self._service.settings.root_path)), media_type="application/json"
        )

    async def docs(self, _: Request) -> Response:
        return HTMLResponse(docs_page())

    async def page(self, _: Request) -> Response:
        return HTMLResponse(page(), headers=page_headers())


def _json(answer: msgspec.Struct) -> Response:
    return Response(msgspec.json.encode(answer), media_type="application/json")

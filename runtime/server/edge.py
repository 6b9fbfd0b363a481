"""The outermost layer: a request id on every answer, the key, and every error in the API's one shape."""

import logging
import time
from collections.abc import Mapping
from typing import Any

import msgspec
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from pllm.runtime.errors import PllmError
from pllm.runtime.server.auth import authorize
from pllm.runtime.server.cors import allowed_origin, answer_headers, is_preflight, preflight_headers
from pllm.runtime.server.generation import ClientGoneError
from pllm.runtime.server.identity import request_id_for
from pllm.runtime.server.log import CURRENT_REQUEST, LoggedRequest
from pllm.runtime.server.protocol.errors import HttpError, error_answer
from pllm.runtime.server.service import Service

__all__ = ["Edge"]

_LOG = logging.getLogger("pllm.server")
_STARTING = 2  # seconds: a restart is cheap
_EXPLAINED = {
    404: "There is nothing at {path}. See /docs.",
    405: "The method {method} is not allowed here. Allowed: {allow}.",
}


class Edge:
    """Wraps the routes. An exception before the first byte becomes an error answer; after it, the connection closes."""

    def __init__(self, app: ASGIApp, service: Service, patterns: Mapping[Any, str]) -> None:
        self._app = app
        self._service = service
        self._patterns = patterns  # of the routes' paths, by endpoint: for the log, since a path may hold anything

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request. uvicorn sends nothing but HTTP here: lifespan and websockets are off."""
        scope["app"] = self  # with it Starlette's router raises HTTPException for 404 and 405
        settings = self._service.settings
        headers = dict(scope["headers"])
        request_id = request_id_for(headers.get(b"x-request-id"))
        request = LoggedRequest.of(request_id, headers.get(b"traceparent"))
        CURRENT_REQUEST.set(request)  # each request has a task of its own, hence a context
        origin = allowed_origin(scope["headers"], settings.cors_origins)
        extra = [(b"x-request-id", request_id), *(answer_headers(origin) if origin is not None else ())]
        began, status = time.monotonic(), 499  # nobody saw an answer, until one begins

        async def send_with_id(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message = {**message, "headers": [*message["headers"], *extra]}
            await send(message)

        if origin is not None and is_preflight(scope["method"], scope["headers"]):
            preflight = preflight_headers(scope["headers"])
            await send_with_id({"type": "http.response.start", "status": 204, "headers": preflight})
            await send_with_id({"type": "http.response.body", "body": b""})
            return
        _strip_root(scope, settings.root_path)
        try:
            authorize(scope["raw_path"], scope["headers"], settings.api_key_digests)
            await self._app(scope, receive, send_with_id)
        except ClientGoneError:
            pass
        except Exception as error:
            if not isinstance(error, PllmError | HTTPException):
                _LOG.exception("request %s failed", request_id.decode())
            if status != 499:
                raise
            await self._answer(error, scope, send_with_id)
        finally:
            if settings.log_requests:
                facts = {
                    "method": scope["method"],
                    "route": self._patterns.get(scope.get("endpoint")),
                    "status": status,
                    "seconds": round(time.monotonic() - began, 4),
                }
                _LOG.info("request", extra=facts)

    async def _answer(self, error: Exception, scope: Scope, send: Send) -> None:
        extra: dict[str, str] = {}
        if isinstance(error, HTTPException):
            extra = dict(error.headers or {})
            text = _EXPLAINED.get(error.status_code, "{detail}")
            path = ascii(scope["path"][:256])
            error = HttpError(
                error.status_code,
                text.format(method=scope["method"], allow=extra.get("Allow"), path=path, detail=error.detail),
            )
        status, answer = error_answer(error)
        body = msgspec.json.encode(answer)
        headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
        headers += [(name.lower().encode(), value.encode()) for name, value in extra.items()]
        if status == 401:
            headers.append((b"www-authenticate", b"Bearer"))
        if status in (429, 503):
            headers.append((b"retry-after", str(self._retry_after(status)).encode()))
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": body})

    def _retry_after(self, status: int) -> int:
        admission = self._service.admission
        return _STARTING if status == 503 or admission is None else admission.retry_after()


def _strip_root(scope: Scope, root: str) -> None:
    """A proxy may strip its prefix or leave it: both reach the same routes. The raw path is what is judged."""
    prefix = root.encode()
    if root and scope["raw_path"].startswith(prefix + b"/"):
        scope["raw_path"] = scope["raw_path"].removeprefix(prefix)
        scope["path"] = scope["path"].removeprefix(root)

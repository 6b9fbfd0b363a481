"""Errors as OpenAI's clients read them: one body for all, and the status that tells a client whether to try again.

OpenAI's clients retry 408, 409, 429 and everything from 500 on. So what cannot succeed is always another 4xx.
"""

import msgspec

from pllm.runtime.errors import PllmError, RequestError

__all__ = ["ErrorAnswer", "HttpError", "error_answer"]


class ErrorBody(msgspec.Struct, frozen=True):
    """``code`` is a string for programs, or null; ``param`` names the field at fault, or is null."""

    message: str
    type: str
    param: str | None = None
    code: str | None = None


class ErrorAnswer(msgspec.Struct, frozen=True):
    """``{"error": {...}}``."""

    error: ErrorBody


class HttpError(PllmError):
    """An error that only the HTTP side knows (no such route, no key, body too large)."""

    def __init__(self, status: int, message: str, *, param: str | None = None, code: str | None = None) -> None:
        super().__init__(message)
        self.http_status, self.param, self.code = status, param, code


_TYPES = {401: "authentication_error", 403: "permission_error", 404: "not_found_error", 429: "rate_limit_error"}


def error_answer(error: Exception) -> tuple[int, ErrorAnswer]:
    """The HTTP status and the body for an exception. What we did not foresee is a 500 that tells nothing."""
    param = code = None
    status, message = 500, "The server failed on this request. Its log says why."
    if isinstance(error, PllmError):
        status, message = error.http_status, error.message
    if isinstance(error, RequestError | HttpError):
        param, code = error.param, error.code
    kind = _TYPES.get(status, "invalid_request_error" if status < 500 else "server_error")
    return status, ErrorAnswer(ErrorBody(message, kind, param, code))

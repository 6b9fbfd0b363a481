"""Pages of other origins that may ask: the Fetch standard's CORS protocol, as far as bearer keys need it."""

from collections.abc import Iterable

__all__ = ["allowed_origin", "answer_headers", "is_preflight", "preflight_headers"]

Headers = list[tuple[bytes, bytes]]


def allowed_origin(headers: Iterable[tuple[bytes, bytes]], origins: frozenset[str]) -> bytes | None:
    """What ``access-control-allow-origin`` should say to this request; None where its origin may not ask."""
    if not origins:
        return None
    origin = next((value for name, value in headers if name == b"origin"), None)
    if origin is None:
        return None
    if "*" in origins:
        return b"*"
    return origin if origin.decode("latin-1") in origins else None


def is_preflight(method: str, headers: Iterable[tuple[bytes, bytes]]) -> bool:
    """Whether a browser asks if it may ask. Such a request carries no key."""
    return method == "OPTIONS" and any(name == b"access-control-request-method" for name, _ in headers)


def answer_headers(origin: bytes) -> Headers:
    """For every answer: the page may read it, and the headers that say something of it."""
    exposed = b"x-request-id, x-pllm-ignored-fields, retry-after"
    return [(b"access-control-allow-origin", origin), (b"access-control-expose-headers", exposed), (b"vary", b"origin")]


def preflight_headers(headers: Iterable[tuple[bytes, bytes]]) -> Headers:
    """For a preflight: any header is fine, for cookies are never looked at."""
    wanted = next((value for name, value in headers if name == b"access-control-request-headers"), b"*")
    return [
        (b"access-control-allow-methods", b"GET, POST"),
        (b"access-control-allow-headers", wanted),
        (b"access-control-max-age", b"600"),
    ]

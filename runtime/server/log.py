"""The server's log: lines for people or JSON for machines, with the request that a line is about, never its content."""

import json
import logging
import re
import time
import traceback
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Final

__all__ = ["CURRENT_REQUEST", "LoggedRequest", "start_log"]

_TRACEPARENT: Final = re.compile(
    rb"(?!ff)[0-9a-f]{2}-(?!0{32})([0-9a-f]{32})-(?!0{16})([0-9a-f]{16})-[0-9a-f]{2}(-.*)?"
)
_FIELDS: Final = ("request_id", "trace_id", "span_id", "method", "route", "status", "seconds")


@dataclass(frozen=True, slots=True)
class LoggedRequest:
    """What a line says of the request that it belongs to. The trace is the client's (W3C Trace Context), if it has
    one: ``span_id`` is the span that called us."""

    request_id: str
    trace_id: str | None = None
    span_id: str | None = None

    @classmethod
    def of(cls, request_id: bytes, traceparent: bytes | None) -> "LoggedRequest":
        """Reads the header ``traceparent``; one that is malformed is no trace."""
        match = None if traceparent is None else _TRACEPARENT.fullmatch(traceparent)
        if match is None:
            return cls(request_id.decode())
        return cls(request_id.decode(), match[1].decode(), match[2].decode())


CURRENT_REQUEST: ContextVar[LoggedRequest | None] = ContextVar("pllm_request", default=None)


def start_log(style: str) -> None:
    """Sets up this process's log on standard error; ``style`` is text or json."""
    handler = logging.StreamHandler()
    handler.addFilter(_add_request)
    handler.setFormatter(_JsonLines() if style == "json" else _Lines("%(levelname)s %(name)s: %(message)s"))
    logging.basicConfig(level=logging.INFO, handlers=[handler])
    logging.getLogger("uvicorn.error").setLevel(logging.CRITICAL)  # clients' mistakes are answered, not logged


def _add_request(record: logging.LogRecord) -> bool:
    request = CURRENT_REQUEST.get()
    if request is not None:
        record.request_id, record.trace_id, record.span_id = request.request_id, request.trace_id, request.span_id
    return True


def _facts(record: logging.LogRecord) -> dict[str, object]:
    return {name: value for name in _FIELDS if (value := getattr(record, name, None)) is not None}


class _Lines(logging.Formatter):
    """A message, and behind it what is known of its request."""

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802  (logging's name)
        facts = " ".join(f"{name}={value}" for name, value in _facts(record).items())
        return super().formatMessage(record) + (f" [{facts}]" if facts else "")


class _JsonLines(logging.Formatter):
    """One object a line."""

    def format(self, record: logging.LogRecord) -> str:
        moment = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        line: dict[str, object] = {
            "time": f"{moment}.{int(record.msecs):03d}Z",
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            **_facts(record),
        }
        if record.exc_info and record.exc_info[1] is not None:
            line["exception"] = "".join(traceback.format_exception(record.exc_info[1]))
        return json.dumps(line)

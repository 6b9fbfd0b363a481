"""What the operator decides at start."""

import hashlib
from dataclasses import dataclass, field
from typing import Literal

from pllm.runtime.message.style import CallStyle

__all__ = ["EdgeLimits", "ServerSettings"]


@dataclass(frozen=True, slots=True, kw_only=True)
class EdgeLimits:
    """What connections may cost. Bytes, and seconds.

    ``max_held_bytes``: of all request bodies together that are not yet turned into prompts.
    ``client_timeout``: how long a client may take over its headers, make us wait for more of its body, or leave a full
    socket unread, before it is dropped; ``keep_alive``: how long an idle connection is kept.
    ``offload_bytes``: requests at least this large are parsed and tokenised in a thread, off the event loop.
    """

    max_header_bytes: int = 64 << 10
    max_body_bytes: int = 32 << 20
    max_held_bytes: int = 512 << 20
    client_timeout: float = 30.0
    keep_alive: int = 60
    offload_bytes: int = 8 << 10


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerSettings:
    """``served_names`` come before the artifact's own. ``max_queue``: requests that may wait beyond those that run.

    ``grace``: seconds that running requests get to finish after the first SIGTERM. ``request_timeout``: seconds that
    any request has, None for no end. ``root_path``: the prefix under which a proxy shows the server, whether it strips
    it or not. ``cors_origins``: whose pages may ask, ``*`` for all. Of the keys only digests are kept.
    """

    served_names: tuple[str, ...] = ()
    api_key_digests: tuple[bytes, ...] = field(default=(), repr=False)
    chat_template: str | None = None
    tool_call_parser: CallStyle | Literal["auto", "none"] = "auto"
    reasoning_parser: Literal["auto", "think", "none"] = "auto"
    max_queue: int = 256
    grace: float = 30.0
    request_timeout: float | None = None
    root_path: str = ""
    cors_origins: frozenset[str] = frozenset()
    log_requests: bool = False
    refuse_unknown_fields: bool = False
    metrics_prefix: str = "pllm"
    limits: EdgeLimits = EdgeLimits()

    @staticmethod
    def key_digest(key: str | bytes) -> bytes:
        """What is kept of an API key, and compared."""
        return hashlib.sha256(key.encode() if isinstance(key, str) else key).digest()

"""Names for requests."""

import os
import re

__all__ = ["new_id", "request_id_for"]

_PLAIN = re.compile(rb"[A-Za-z0-9._:-]{1,128}")


def new_id(kind: str) -> str:
    """A fresh id such as ``chatcmpl-8f3c...``: 96 random bits."""
    return f"{kind}-{os.urandom(12).hex()}"


def request_id_for(given: bytes | None) -> bytes:
    """The x-request-id of an answer: the client's own if it is a plain one, else a fresh one."""
    if given is not None and _PLAIN.fullmatch(given):
        return given
    return new_id("req").encode()

"""The page at ``/``: one file of HTML, which chats and shows the engine. It asks no other host for anything."""

import re
from base64 import b64encode
from functools import cache
from hashlib import sha256
from importlib.resources import files

__all__ = ["page", "page_headers"]


@cache
def page() -> str:
    """The file."""
    return files("pllm.runtime.server").joinpath("page.html").read_text("utf-8")


@cache
def page_headers() -> dict[str, str]:
    """What a browser lets it do: run its own script, ask its own server; nothing else, and in no frame."""
    script = re.search("<script>(.*)</script>", page(), re.DOTALL)
    assert script is not None
    digest = b64encode(sha256(script[1].encode()).digest()).decode()
    policy = (
        f"default-src 'none'; script-src 'sha256-{digest}'; style-src 'unsafe-inline'; img-src data:; "
        "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
    return {
        "content-security-policy": policy,
        "referrer-policy": "no-referrer",
        "x-content-type-options": "nosniff",
        "cache-control": "no-cache",
    }

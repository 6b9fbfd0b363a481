"""Who may ask: a bearer key on every route but the health checks and the empty page at ``/``."""

import hmac
from collections.abc import Iterable, Sequence

from pllm.runtime.server.protocol.errors import HttpError
from pllm.runtime.server.settings import ServerSettings

__all__ = ["authorize"]

# The page at / is the same for everybody and says nothing of the model: its reader gives the key there.
OPEN_PATHS = frozenset({b"/health", b"/ready", b"/"})


def authorize(raw_path: bytes, headers: Iterable[tuple[bytes, bytes]], digests: Sequence[bytes]) -> None:
    """Raises HttpError 401 unless one of the keys is given. Without keys anyone may ask, with any bearer.

    The path is judged as it was sent: an encoding that a router would undo does not open a door. All digests are
    compared, each in constant time, so that the time taken tells nothing about a key.
    """
    if not digests or raw_path in OPEN_PATHS:
        return
    given = [value for name, value in headers if name == b"authorization"]
    scheme, _, key = given[0].partition(b" ") if len(given) == 1 else (b"", b"", b"")
    digest = ServerSettings.key_digest(key.strip())
    matches = sum(hmac.compare_digest(digest, known) for known in digests)
    if scheme.lower() != b"bearer" or not matches:
        raise HttpError(
            401,
            "Incorrect API key provided. Send the server's key as 'Authorization: Bearer KEY'.",
            code="invalid_api_key",
        )

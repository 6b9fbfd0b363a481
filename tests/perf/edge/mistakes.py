"""A client that sends requests that are wrong, and notes how long their 400 takes."""

import asyncio
import time

__all__ = ["send_mistakes", "share_of"]

_BODY = b'{"prompt": "x", "temperature": "hot"}'
_REQUEST = b"POST /v1/completions HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: %d\r\n\r\n" % len(_BODY)
_PAUSE = 0.02  # seconds


async def send_mistakes(port: int, waits: list[float]) -> None:
    """One after another, each on a connection of its own, until cancelled; appends the seconds to ``waits``."""
    while True:
        began = time.perf_counter()
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(_REQUEST + _BODY)
        answer = await reader.read()
        writer.close()
        assert answer.startswith(b"HTTP/1.1 400 "), answer[:100]
        waits.append(time.perf_counter() - began)
        await asyncio.sleep(_PAUSE)


def share_of(values: list[float], percent: int) -> float:
    """The percentile: no interpolation."""
    return sorted(values)[min(len(values) - 1, len(values) * percent // 100)]

"""What crosses the socket between the API process and the engine process, and how it is framed.

A frame is a 4-byte little-endian length and that many bytes of msgpack. To the engine: one frame a command. From the
engine: one `Ready`, then one `Step` for each step, however many sequences it moved (not one frame a token).

    API process                                   engine process
      EngineSocket  -- Submit, Abort, ... -->       EngineLoop
                    <-- Ready, Step, Refused --
"""

import struct
from math import nan
from typing import Final

import msgspec

from pllm.runtime.sequence import Request
from pllm.runtime.step import SchedulerStats, TokenDelta

__all__ = [
    "Abort",
    "Command",
    "EngineInfo",
    "EngineOptions",
    "Event",
    "Failed",
    "FrameReader",
    "Ready",
    "Refused",
    "ResetPrefixCache",
    "Shutdown",
    "Step",
    "Submit",
    "decode_command",
    "decode_event",
    "encode_frame",
]

_LENGTH: Final = struct.Struct("<I")


class EngineOptions(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What the API process tells a new engine process: the artifact, and the operator's limits (None: the artifact's).

    ``core`` names what opens it, ``module:callable``, called as ``callable(artifact, **limits)``: the seam by which
    tests put in an engine whose model is a function.
    """

    artifact: str
    core: str
    max_num_seqs: int | None = None
    memory: str | None = None
    threads: int | None = None
    enable_prefix_caching: bool | None = None


class EngineInfo(msgspec.Struct, frozen=True, kw_only=True):
    """The open engine: whose model it is and what it can hold; ``open_seconds`` is from its process's start to ready.

    ``model_source``: what the artifact was built from (a Hub id, a path). ``vocab_size``: rows of the embedding.
    """

    model_name: str
    model_source: str
    vocab_size: int
    max_num_seqs: int
    max_num_batched_tokens: int
    max_model_len: int
    block_size: int
    num_blocks: int
    enable_prefix_caching: bool
    open_seconds: float
    grammars: tuple[str, ...] = ()  # files of the artifact, as its manifest lists them
    notices: tuple[str, ...] = ()  # `EngineCore.notices`


class Submit(msgspec.Struct, frozen=True, tag=True):
    """Take a request."""

    request: Request


class Abort(msgspec.Struct, frozen=True, tag=True):
    """Drop a request, or only its sequence ``index``. Unknown ids are ignored: it may have finished meanwhile."""

    request_id: str
    index: int | None = None


class ResetPrefixCache(msgspec.Struct, frozen=True, tag=True):
    """Forget all cached prefixes that no running sequence holds."""


class Shutdown(msgspec.Struct, frozen=True, tag=True):
    """Close and exit 0."""


class Ready(msgspec.Struct, frozen=True, tag=True):
    """The artifact is open; steps may be asked for."""

    info: EngineInfo
    stats: SchedulerStats


class Step(msgspec.Struct, frozen=True, tag=True):
    """A step was done (or, with no deltas, only the counts changed: after an abort)."""

    deltas: list[TokenDelta]
    stats: SchedulerStats
    perf_ratio: float = nan
    """`Engine.perf_ratio`."""


class Refused(msgspec.Struct, frozen=True, tag=True):
    """A request was not taken. ``queue_full`` is worth trying again; the rest is the request's own fault."""

    request_id: str
    message: str
    queue_full: bool = False
    param: str | None = None
    code: str | None = None


class Failed(msgspec.Struct, frozen=True, tag=True):
    """The engine cannot go on and exits with ``exit_code`` next. ``permanent``: starting it again would fail alike."""

    message: str
    exit_code: int
    permanent: bool


Command = Submit | Abort | ResetPrefixCache | Shutdown
Event = Ready | Step | Refused | Failed

_encoder = msgspec.msgpack.Encoder()
_command_decoder: msgspec.msgpack.Decoder[Command] = msgspec.msgpack.Decoder(Command)
_event_decoder: msgspec.msgpack.Decoder[Event] = msgspec.msgpack.Decoder(Event)
decode_command = _command_decoder.decode
decode_event = _event_decoder.decode


def encode_frame(message: Command | Event) -> bytearray:
    """One message as bytes for the socket, its length first."""
    frame = bytearray(_LENGTH.size)
    _encoder.encode_into(message, frame, _LENGTH.size)
    _LENGTH.pack_into(frame, 0, len(frame) - _LENGTH.size)
    return frame


class FrameReader:
    """Cuts a byte stream back into frames, wherever the reads happened to cut it."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, data: bytes | bytearray | memoryview) -> list[bytes]:
        """The bodies of the frames that ``data`` completes, in order."""
        buffer = self._buffer
        buffer += data
        frames = []
        start = 0
        while len(buffer) - start >= _LENGTH.size:
            end = start + _LENGTH.size + _LENGTH.unpack_from(buffer, start)[0]
            if len(buffer) < end:
                break
            frames.append(bytes(buffer[start + _LENGTH.size : end]))
            start = end
        if start:
            del buffer[:start]
        return frames

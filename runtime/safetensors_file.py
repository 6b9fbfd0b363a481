"""safetensors files: a strict, bounded reader that maps them, and a writer that streams them.

The format (https://github.com/huggingface/safetensors, "Format")::

    0        8                        8 + N             end
    +--------+------------------------+-----------------+
    | N: u64 | JSON header, N bytes   | tensor data     |
    +--------+------------------------+-----------------+
      little   name -> dtype, shape,    packed without
      endian   data_offsets             holes

The reader believes nothing: lengths, shapes, dtypes and offsets are checked against each other and against the size of
the file before anything is mapped, and what a hostile header can cost is bounded by :data:`MAX_HEADER_BYTES`.

The writer makes files for zero-copy use: the data begins at a page (4096 bytes, the header padded with spaces) and each
tensor at a cache line (64 bytes). The format allows no holes, so the bytes between two tensors are a tensor of their
own, whose name begins with :data:`PADDING_PREFIX`; the reader leaves those out.
"""

import math
import mmap
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import msgspec

__all__ = [
    "DTYPE_BYTES",
    "MAX_HEADER_BYTES",
    "PADDING_PREFIX",
    "TENSOR_ALIGNMENT",
    "SafetensorsError",
    "SafetensorsFile",
    "TensorEntry",
    "TensorSpec",
    "read_header",
    "write_safetensors",
]

DTYPE_BYTES: Mapping[str, int] = {
    "BOOL": 1, "U8": 1, "I8": 1, "F8_E4M3": 1, "F8_E5M2": 1, "U16": 2, "I16": 2, "F16": 2, "BF16": 2,
    "U32": 4, "I32": 4, "F32": 4, "U64": 8, "I64": 8, "F64": 8,
}  # fmt: skip
"""Bytes of one element, by the format's dtype names."""

MAX_HEADER_BYTES = 32 << 20
"""The longest header we read: a file of 100,000 tensors needs some 12 MB."""

PADDING_PREFIX = "__padding__."
DATA_ALIGNMENT = 4096
TENSOR_ALIGNMENT = 64

_MAX_RANK = 16
_WRITE_BYTES = 16 << 20


class SafetensorsError(Exception):
    """The file is not a well-formed safetensors file. The message begins with the path."""


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """A tensor before it has a place: name, dtype (a key of :data:`DTYPE_BYTES`) and shape."""

    name: str
    dtype: str
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * DTYPE_BYTES[self.dtype]


@dataclass(frozen=True, slots=True)
class TensorEntry:
    """A tensor in a file: ``nbytes`` bytes at ``offset`` from the file's first byte, row-major, little endian."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    offset: int
    nbytes: int


class _HeaderEntry(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    dtype: str
    shape: tuple[int, ...]
    data_offsets: tuple[int, int]


_HEADER: msgspec.json.Decoder[dict[str, msgspec.Raw]] = msgspec.json.Decoder(dict[str, msgspec.Raw])
_ENTRY = msgspec.json.Decoder(_HeaderEntry)
_METADATA: msgspec.json.Decoder[dict[str, str]] = msgspec.json.Decoder(dict[str, str])


def read_header(path: Path) -> tuple[dict[str, TensorEntry], dict[str, str]]:
    """The tensors of a file in the order of their data, and its metadata; no tensor data is read.

    Raises SafetensorsError for anything malformed and OSError where the file cannot be read.
    """
    with path.open("rb") as file:
        return _read_header(path, file.fileno())


class SafetensorsFile:
    """A mapped, read-only safetensors file.

    The mapping is shared with the page cache: two processes that serve one artifact hold its weights once. Views and
    addresses are valid until :meth:`close`; closing while a view lives raises BufferError.
    """

    def __init__(self, path: Path, *, populate: bool = False) -> None:
        """Map ``path``. With ``populate`` the kernel sets up all pages now instead of at their first touch.

        Raises SafetensorsError or OSError as :func:`read_header` does.
        """
        self.path = path
        with path.open("rb") as file:
            self.tensors, self.metadata = _read_header(path, file.fileno())
            flags = mmap.MAP_SHARED | (mmap.MAP_POPULATE if populate else 0)
            self._map = mmap.mmap(file.fileno(), 0, flags=flags, prot=mmap.PROT_READ)

    @property
    def address(self) -> int:
        """Where the file's first byte lies in this process: a tensor begins at ``address + entry.offset``."""
        # numpy tells the address of a read-only buffer; ctypes does not. It is not needed to read headers.
        import numpy as np  # noqa: PLC0415

        return int(np.frombuffer(self._map, dtype=np.uint8).__array_interface__["data"][0])

    def view(self, name: str) -> memoryview:
        """The bytes of a tensor, not copied, as a read-only view. Raises KeyError for a name that is not there."""
        entry = self.tensors[name]
        return memoryview(self._map)[entry.offset : entry.offset + entry.nbytes]

    def close(self) -> None:
        self._map.close()

    def __enter__(self) -> "SafetensorsFile":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def write_safetensors(
    path: Path, specs: Sequence[TensorSpec], fetch: Callable[[str], Any], metadata: Mapping[str, str] | None = None
) -> list[TensorEntry]:
    """Write a new file of the given tensors, in the given order, aligned as the module says; synced to the disk.

    ``fetch(name)`` is called once for each tensor, in order, and gives a C-contiguous object with the buffer protocol
    (a numpy array: bfloat16 as its uint16 bits) of exactly the tensor's bytes; it is released before the next one is
    fetched, so that one tensor is held at a time. The same specs and values make the same bytes.
    Raises ValueError for a tensor of another size than its spec, FileExistsError, OSError.
    """
    header, entries = _layout(specs, metadata)
    with path.open("xb", buffering=0) as file:
        _write_all(file.fileno(), header)
        position = len(header)
        for entry in entries:
            if entry.offset > position:
                _write_all(file.fileno(), bytes(entry.offset - position))
            given = memoryview(fetch(entry.name))
            data = given.cast("B") if given.nbytes else memoryview(b"")  # an empty shape cannot be cast
            if data.nbytes != entry.nbytes:
                raise ValueError(f"{entry.name}: {data.nbytes} bytes given for {entry.dtype}{list(entry.shape)}")
            _write_all(file.fileno(), data)
            position = entry.offset + entry.nbytes
            del given, data
        os.fsync(file.fileno())
    return entries


def _read_header(path: Path, file: int) -> tuple[dict[str, TensorEntry], dict[str, str]]:
    def malformed(reason: str) -> SafetensorsError:
        return SafetensorsError(f"{path}: {reason}")

    size = os.fstat(file).st_size
    prefix = os.pread(file, 8, 0)
    if len(prefix) < 8:
        raise malformed(f"{size} bytes are too few for a safetensors file")
    length = int.from_bytes(prefix, "little")
    if length > min(size - 8, MAX_HEADER_BYTES):
        raise malformed(f"its header claims {length} bytes, in a file of {size} (at most {MAX_HEADER_BYTES} are read)")
    try:
        raw = _HEADER.decode(os.pread(file, length, 8))
        metadata = _METADATA.decode(raw.pop("__metadata__", msgspec.Raw(b"{}")))
        parsed = {name: _ENTRY.decode(value) for name, value in raw.items()}
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise malformed(f"its header is malformed: {error}") from None
    start = 8 + length
    entries: dict[str, TensorEntry] = {}
    position = 0
    for name, entry in sorted(parsed.items(), key=lambda item: (item[1].data_offsets, item[0])):
        begin, end = entry.data_offsets
        width = DTYPE_BYTES.get(entry.dtype)
        if width is None:
            raise malformed(f"tensor {name!r} has the unknown dtype {entry.dtype!r}")
        if len(entry.shape) > _MAX_RANK or any(extent < 0 for extent in entry.shape):
            raise malformed(f"tensor {name!r} has an impossible shape")
        if begin != position:
            raise malformed(f"tensor {name!r} begins at {begin}, where {position} was due: data overlaps or has a hole")
        if end - begin != math.prod(entry.shape) * width:
            raise malformed(f"tensor {name!r} has {end - begin} bytes for {entry.dtype}{list(entry.shape)}")
        if not name.startswith(PADDING_PREFIX):
            entries[name] = TensorEntry(name, entry.dtype, entry.shape, start + begin, end - begin)
        position = end
    if start + position != size:
        raise malformed(f"it has {size} bytes, and its header accounts for {start + position}")
    return entries, metadata


def _layout(specs: Sequence[TensorSpec], metadata: Mapping[str, str] | None) -> tuple[bytes, list[TensorEntry]]:
    """The padded header, length prefix included, and the place of each tensor."""
    if len({spec.name for spec in specs}) != len(specs):
        raise ValueError("two tensors of one name")
    if any(spec.name.startswith(("__metadata__", PADDING_PREFIX)) for spec in specs):
        raise ValueError("a tensor whose name means something else to the format")
    table: dict[str, Any] = {"__metadata__": dict(sorted(metadata.items()))} if metadata else {}
    begins: list[int] = []
    position = 0
    for spec in specs:
        gap = -position % TENSOR_ALIGNMENT
        if gap:
            table[f"{PADDING_PREFIX}{len(begins)}"] = _HeaderEntry("U8", (gap,), (position, position + gap))
            position += gap
        table[spec.name] = _HeaderEntry(spec.dtype, spec.shape, (position, position + spec.nbytes))
        begins.append(position)
        position += spec.nbytes
    text = msgspec.json.encode(table)
    text += b" " * (-(8 + len(text)) % DATA_ALIGNMENT)
    header = len(text).to_bytes(8, "little") + text
    entries = [
        TensorEntry(spec.name, spec.dtype, spec.shape, len(header) + begin, spec.nbytes)
        for spec, begin in zip(specs, begins, strict=True)
    ]
    return header, entries


def _write_all(file: int, data: bytes | memoryview) -> None:
    view = memoryview(data)
    while view.nbytes:
        view = view[os.write(file, view[:_WRITE_BYTES]) :]

"""The reader against hostile files, and both against the safetensors package."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file

from pllm.runtime.safetensors_file import (
    DTYPE_BYTES,
    MAX_HEADER_BYTES,
    SafetensorsError,
    SafetensorsFile,
    TensorSpec,
    read_header,
    write_safetensors,
)

QUICK = settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])

shapes = st.lists(st.integers(0, 9), max_size=4).map(tuple)
tensors = st.lists(
    st.tuples(st.text(min_size=1, max_size=12), st.sampled_from(sorted(DTYPE_BYTES)), shapes),
    min_size=1,
    max_size=8,
    unique_by=lambda item: item[0],
)


def file_of(header: Any, data: bytes = b"") -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data


def entry(dtype: str = "U8", shape: Any = (1,), offsets: Any = (0, 1)) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


@QUICK
@given(tensors=tensors)
def test_what_is_written_is_read_back_aligned(tmp_path: Path, tensors: list[tuple[str, str, tuple[int, ...]]]) -> None:
    path = tmp_path / "w.safetensors"
    path.unlink(missing_ok=True)
    specs = [TensorSpec(*item) for item in tensors if not item[0].startswith("__")]
    rng = np.random.default_rng(0)
    values = {spec.name: rng.integers(0, 256, spec.nbytes, dtype=np.uint8) for spec in specs}
    entries = write_safetensors(path, specs, values.__getitem__, {"b": "2", "a": "1"})
    with SafetensorsFile(path) as file:
        assert [file.tensors[spec.name] for spec in specs] == entries
        assert set(file.tensors) == {spec.name for spec in specs}
        assert file.metadata == {"a": "1", "b": "2"}
        assert file.address % 4096 == 0
        for spec in specs:
            assert file.tensors[spec.name].offset % 64 == 0
            assert bytes(file.view(spec.name)) == values[spec.name].tobytes()
            assert file.view(spec.name).readonly


def test_the_safetensors_package_reads_what_we_write(tmp_path: Path) -> None:
    values = {
        "odd": np.arange(5, dtype=np.float32),
        "scalar": np.array(2.5, dtype=np.float32),
        "empty": np.zeros((0, 3), dtype=np.float32),
        "square": np.eye(3, dtype=np.float32),
    }
    specs = [TensorSpec(name, "F32", value.shape) for name, value in values.items()]
    write_safetensors(tmp_path / "w", specs, values.__getitem__)
    read = load_file(tmp_path / "w")
    for name, value in values.items():
        assert np.array_equal(read[name], value)


def test_we_read_what_the_safetensors_package_writes(tmp_path: Path) -> None:
    values = {"a": np.arange(7, dtype=np.int8), "b": np.ones((2, 2), dtype=np.float64), "c": np.zeros(0, np.int32)}
    save_file(values, tmp_path / "w", metadata={"format": "np"})
    with SafetensorsFile(tmp_path / "w") as file:
        assert file.metadata == {"format": "np"}
        for name, value in values.items():
            assert bytes(file.view(name)) == value.tobytes()
            assert file.tensors[name].shape == value.shape


def test_one_tensor_is_held_at_a_time(tmp_path: Path) -> None:
    alive: list[int] = []

    class Counted(np.ndarray):  # type: ignore[type-arg]
        def __del__(self) -> None:
            alive.append(-1)

    def fetch(name: str) -> Any:
        alive.append(1)
        assert sum(alive) <= 1
        return np.zeros(100, dtype=np.uint8).view(Counted)

    write_safetensors(tmp_path / "w", [TensorSpec(str(n), "U8", (100,)) for n in range(5)], fetch)
    assert alive.count(1) == 5


def test_a_value_of_another_size_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="8 bytes given"):
        write_safetensors(tmp_path / "w", [TensorSpec("a", "F32", (3,))], lambda _: bytes(8))
    with pytest.raises(ValueError, match="two tensors"):
        write_safetensors(tmp_path / "v", [TensorSpec("a", "F32", (3,))] * 2, lambda _: bytes(12))


HOSTILE = {
    "empty": b"",
    "short": b"\x01\0\0",
    "absurd length": (2**63).to_bytes(8, "little") + b"{}",
    "length beyond the file": (100).to_bytes(8, "little") + b"{}",
    "length beyond the limit": (MAX_HEADER_BYTES + 1).to_bytes(8, "little") + b"{}",
    "no JSON": file_of(b"pickle"),
    "not text": file_of(b'{"\xff": 1}'),
    "a list": file_of([]),
    "deep": file_of(b'{"a":' + b"[" * 100_000 + b"]" * 100_000 + b"}"),
    "unknown dtype": file_of({"a": entry(dtype="F128")}, b"1"),
    "unknown field": file_of({"a": entry() | {"pickle": "yes"}}, b"1"),
    "missing field": file_of({"a": {"dtype": "U8", "shape": [1]}}, b"1"),
    "overlap": file_of({"a": entry(shape=[2], offsets=[0, 2]), "b": entry(shape=[2], offsets=[1, 3])}, b"123"),
    "same place": file_of({"a": entry(), "b": entry()}, b"1"),
    "hole": file_of({"a": entry(), "b": entry(offsets=[2, 3])}, b"123"),
    "hole at the start": file_of({"a": entry(offsets=[1, 2])}, b"12"),
    "backwards": file_of({"a": entry(offsets=[1, 0])}, b"1"),
    "negative offset": file_of({"a": entry(offsets=[-1, 0])}, b"1"),
    "huge offset": file_of({"a": entry(shape=[2**62], offsets=[0, 2**62])}, b"1"),
    "beyond 64 bits": file_of({"a": entry(shape=[2**70], offsets=[0, 2**70])}, b"1"),
    "negative extent": file_of({"a": entry(shape=[-1, -1])}, b"1"),
    "fraction": file_of({"a": entry(shape=[1.5])}, b"1"),
    "size against shape": file_of({"a": entry(shape=[2])}, b"1"),
    "too many extents": file_of({"a": entry(shape=[1] * 50)}, b"1"),
    "truncated data": file_of({"a": entry(shape=[2], offsets=[0, 2])}, b"1"),
    "extended data": file_of({"a": entry()}, b"12"),
    "metadata that is no text": file_of({"__metadata__": {"a": 1}, "a": entry()}, b"1"),
    "three offsets": file_of({"a": entry(offsets=[0, 1, 1])}, b"1"),
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_a_hostile_file_is_refused_by_name(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "hostile.safetensors"
    path.write_bytes(HOSTILE[kind])
    with pytest.raises(SafetensorsError, match=r"hostile\.safetensors"):
        read_header(path)


@QUICK
@given(data=st.data())
def test_a_damaged_file_is_refused_or_read_within_its_bounds(tmp_path: Path, data: st.DataObject) -> None:
    path = tmp_path / "d.safetensors"
    path.unlink(missing_ok=True)
    specs = [TensorSpec("a", "F32", (3, 5)), TensorSpec("b", "BF16", (7,)), TensorSpec("c", "I64", ())]
    write_safetensors(path, specs, lambda name: bytes({s.name: s.nbytes for s in specs}[name]))
    content = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 3))):
        content[data.draw(st.integers(0, 400))] = data.draw(st.integers(0, 255))
    path.write_bytes(content[: data.draw(st.integers(0, len(content)))] if data.draw(st.booleans()) else content)
    try:
        entries, _ = read_header(path)
    except SafetensorsError:
        return
    for found in entries.values():
        assert 8 <= found.offset <= found.offset + found.nbytes <= path.stat().st_size
        assert found.nbytes == math.prod(found.shape) * DTYPE_BYTES[found.dtype]


@QUICK
@given(junk=st.binary(max_size=300), length=st.integers(0, 400))
def test_junk_never_does_more_than_raise(tmp_path: Path, junk: bytes, length: int) -> None:
    path = tmp_path / "junk"
    path.write_bytes(length.to_bytes(8, "little") + junk)
    try:
        read_header(path)
    except SafetensorsError as error:
        assert "junk" in str(error)

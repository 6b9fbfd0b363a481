"""A compiled program: what it is given is checked, and what is refused leaves the process and the program alive."""

import ctypes
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from numpy.typing import NDArray

from pllm.runtime.artifact import Artifact, MappedWeights, Weight
from pllm.runtime.errors import ArtifactDamagedError, ArtifactMismatchError, PllmError
from pllm.runtime.manifest import Constant, ProgramInfo
from pllm.runtime.program import Program
from tests.build.graphs import BLOCK_SIZE, VOCABULARY

from .artifacts import Built

Inputs = dict[str, NDArray[Any]]
NUM_BLOCKS = 6


@dataclass(frozen=True, slots=True)
class Parts:
    """What a program is opened from."""

    info: ProgramInfo
    library: Path
    weights: dict[str, Weight]
    operators: list[Path]
    pool: tuple[int, ...]

    def open(self) -> Program:
        return Program.open(self.info, self.library, self.weights, self.operators)

    def inputs(self) -> Inputs:
        """Three tokens of one sequence and a first one of another, into blocks 4 and 1."""
        return {
            "input_ids": np.array([5, 9, 40, 71], np.int64),
            "positions": np.array([0, 1, 2, 0], np.int64),
            "block_table": np.array([[4], [1]], np.int32),
            "query_start": np.array([0, 3, 4], np.int32),
            "context_len": np.array([3, 1], np.int32),
            "logits_index": np.array([2, 3], np.int64),
            "kv": np.zeros(self.pool, np.float32),
        }


@pytest.fixture(scope="module")
def mapped(tiny: Built) -> Iterator[MappedWeights]:
    with closing(Artifact.read(tiny.artifact).map_weights()) as weights:
        yield weights


@pytest.fixture(scope="module")
def parts(tiny: Built, mapped: MappedWeights) -> Parts:
    artifact = Artifact.read(tiny.artifact)
    manifest = artifact.manifest
    kv = manifest.kv
    return Parts(
        manifest.program("main"),
        artifact.path(manifest.program("main").file),
        dict(mapped.tensors),
        [artifact.path(name) for name in manifest.operators],
        (NUM_BLOCKS, kv.num_layers, 2, kv.num_kv_heads, kv.block_size, kv.head_dim),
    )


@pytest.fixture(scope="module")
def program(parts: Parts) -> Iterator[Program]:
    with closing(parts.open()) as opened:
        yield opened


@pytest.fixture(scope="module")
def expected(parts: Parts, program: Program) -> NDArray[np.float32]:
    return program.run(parts.inputs()).copy()


def test_a_run_gives_logits_that_depend_on_its_inputs(
    parts: Parts, program: Program, expected: NDArray[np.float32]
) -> None:
    assert expected.shape == (2, VOCABULARY)
    assert np.isfinite(expected).all()
    assert np.array_equal(program.run(parts.inputs()), expected)
    other = program.run(parts.inputs() | {"input_ids": np.array([5, 10, 40, 71], np.int64)})
    assert np.abs(other[0] - expected[0]).max() > 0.01
    assert np.array_equal(other[1], expected[1]), "a sequence depends on its neighbour"


def test_logits_can_be_read_and_not_written(parts: Parts, program: Program) -> None:
    logits = program.run(parts.inputs())
    with pytest.raises(ValueError, match="read-only"):
        logits[0] = 0


def test_keys_and_values_go_where_the_block_table_says(parts: Parts, program: Program) -> None:
    inputs = parts.inputs()
    program.run(inputs)
    written = np.abs(inputs["kv"]).sum(axis=(1, 2, 3, 5)) > 0
    assert np.argwhere(written).tolist() == [[1, 0], [4, 0], [4, 1], [4, 2]]


def float_ids(inputs: Inputs) -> None:
    inputs["input_ids"] = inputs["input_ids"].astype(np.float32)


def narrow_ids(inputs: Inputs) -> None:
    inputs["input_ids"] = inputs["input_ids"].astype(np.int32)


def flat_table(inputs: Inputs) -> None:
    inputs["block_table"] = inputs["block_table"].reshape(-1)


def strided_positions(inputs: Inputs) -> None:
    inputs["positions"] = np.repeat(inputs["positions"], 2)[::2]


def more_positions(inputs: Inputs) -> None:
    inputs["positions"] = np.arange(5)


def more_contexts(inputs: Inputs) -> None:
    inputs["context_len"] = np.array([3, 1, 1], np.int32)


def no_tokens(inputs: Inputs) -> None:
    inputs["input_ids"] = inputs["positions"] = np.zeros(0, np.int64)


def no_boundaries(inputs: Inputs) -> None:
    inputs["query_start"] = np.zeros(1, np.int32)


def wider_heads(inputs: Inputs) -> None:
    inputs["kv"] = np.zeros((*inputs["kv"].shape[:-1], 2 * inputs["kv"].shape[-1]), np.float32)


def narrow_pool(inputs: Inputs) -> None:
    inputs["kv"] = inputs["kv"].astype(np.float16).view(np.uint16)


def transposed_pool(inputs: Inputs) -> None:
    inputs["kv"] = np.zeros((*inputs["kv"].shape[:-2], *inputs["kv"].shape[:-3:-1]), np.float32).swapaxes(-1, -2)


def missing(inputs: Inputs) -> None:
    del inputs["kv"]


def misnamed(inputs: Inputs) -> None:
    inputs["cache"] = inputs.pop("kv")


def surplus(inputs: Inputs) -> None:
    inputs["attention_mask"] = np.ones(4, np.float32)


Spoil = Callable[[Inputs], None]


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (float_ids, r"input_ids is float32\[4\], and must be int64"),
        (narrow_ids, r"input_ids is int32\[4\]"),
        (flat_table, r"block_table is int32\[2\]"),
        (strided_positions, r"positions is .*contiguous"),
        (more_positions, r"positions is int64\[5\]"),
        (more_contexts, r"context_len is int32\[3\]"),
        (no_tokens, r"input_ids is int64\[0\]"),
        (no_boundaries, r"query_start is int32\[1\]"),
        (wider_heads, "kv is float32"),
        (narrow_pool, "kv is uint16"),
        (transposed_pool, "kv is .*contiguous"),
        (missing, "takes .*'kv'"),
        (misnamed, "takes .*'kv'.*not .*'cache'"),
        (surplus, "not .*attention_mask"),
    ],
)
def test_inputs_of_another_form_are_refused_before_they_reach_the_program(
    parts: Parts, program: Program, expected: NDArray[np.float32], spoil: Spoil, said: str
) -> None:
    inputs = parts.inputs()
    spoil(inputs)
    with pytest.raises(PllmError, match=said):
        program.run(inputs)
    assert np.array_equal(program.run(parts.inputs()), expected)


@pytest.mark.parametrize("rows", [[3], [0, 2], [3, 0, 3, 2, 1, 1]])
def test_a_row_of_logits_is_the_same_bits_whichever_are_asked_for(
    parts: Parts, program: Program, rows: list[int]
) -> None:
    """The last layer's products are of those rows alone."""
    every = program.run(parts.inputs() | {"logits_index": np.arange(4)}).copy()
    assert np.array_equal(program.run(parts.inputs() | {"logits_index": np.array(rows)}), every[rows])


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("block_table", [[4], [NUM_BLOCKS]], "outside the pool of 6 blocks"),
        ("block_table", [[-1], [1]], "outside the pool of 6 blocks"),
        ("block_table", [[2**31 - 1], [1]], "outside the pool of 6 blocks"),
        ("context_len", [BLOCK_SIZE + 3, 1], "needs 2 blocks"),
        ("context_len", [2, 1], ""),
        ("context_len", [-5, 1], ""),
        ("query_start", [0, 4, 3], ""),
        ("query_start", [0, 3, 9], ""),
        ("query_start", [1, 3, 4], ""),
        ("input_ids", [5, 9, VOCABULARY, 71], "outside the vocabulary of 128"),
        ("input_ids", [5, -1, 40, 71], "outside the vocabulary of 128"),
        ("logits_index", [2, 4], ""),
        ("logits_index", [2, -5], ""),
    ],
)
def test_values_out_of_range_are_refused_and_the_program_goes_on(
    parts: Parts, program: Program, expected: NDArray[np.float32], name: str, value: list[Any], said: str
) -> None:
    inputs = parts.inputs()
    inputs[name] = np.array(value, inputs[name].dtype)
    pool = inputs["kv"].copy()
    with pytest.raises(PllmError, match=f"RunSingleThreaded failed: .*{said}"):
        program.run(inputs)
    if name in ("block_table", "context_len", "query_start"):
        assert np.array_equal(inputs["kv"], pool), "it wrote before it refused"
    assert np.array_equal(program.run(parts.inputs()), expected)


def test_logits_outlive_the_program(parts: Parts, expected: NDArray[np.float32]) -> None:
    opened = parts.open()
    logits = opened.run(parts.inputs())
    opened.close()
    assert np.array_equal(logits, expected)


def test_closing_ends_it(parts: Parts, program: Program, expected: NDArray[np.float32]) -> None:
    opened = parts.open()
    opened.close()
    opened.close()
    with pytest.raises(PllmError, match="'main' is closed"):
        opened.run(parts.inputs())
    assert np.array_equal(program.run(parts.inputs()), expected), "another of the same library"


def changed(parts: Parts, name: str, **changes: Any) -> Parts:
    return replace(parts, weights=parts.weights | {name: replace(parts.weights[name], **changes)})


class TestConstants:
    def test_every_one_is_demanded(self, parts: Parts) -> None:
        for name in parts.weights:
            left = {other: weight for other, weight in parts.weights.items() if other != name}
            with pytest.raises(ArtifactDamagedError, match=f"no weight for the program's constant '{name}'"):
                replace(parts, weights=left).open()

    def test_each_has_its_own_dtype(self, parts: Parts) -> None:
        name = "causal_lm.model.norm.weight"
        for dtype in ("I32", "BF16", "BOOL", "F8_E4M3"):
            with pytest.raises(ArtifactDamagedError, match=f"constant '{name}' has .*weight '{name}' is {dtype}"):
                changed(parts, name, dtype=dtype).open()

    def test_each_has_its_own_size(self, parts: Parts) -> None:
        name = "causal_lm.model.norm.weight"
        size = parts.weights[name].nbytes
        for nbytes, shape in ((2 * size, (128,)), (size // 2, (32,)), (0, (0,))):
            with pytest.raises(ArtifactDamagedError, match=f"constant '{name}' has .*weight '{name}' is F32"):
                changed(parts, name, nbytes=nbytes, shape=shape).open()

    def test_each_has_its_own_shape(self, parts: Parts) -> None:
        """As many bytes, in other rows and columns."""
        name, weight = max(parts.weights.items(), key=lambda item: len(item[1].shape))
        other = (weight.shape[-1], *weight.shape[:-1])
        assert other != weight.shape
        with pytest.raises(ArtifactDamagedError, match=f"constant '{name}' has the shape .*weight '{name}' has "):
            changed(parts, name, shape=other).open()

    def test_the_manifest_names_no_more_than_there_are(self, parts: Parts) -> None:
        constants = (*parts.info.constants, Constant(name="surplus", weight=next(iter(parts.weights)), shape=(1,)))
        info = msgspec.structs.replace(parts.info, constants=constants)
        with pytest.raises(ArtifactDamagedError, match=r"constants that it lacks: .*surplus"):
            replace(parts, info=info).open()

    def test_the_manifest_names_no_fewer_than_there_are(self, parts: Parts) -> None:
        info = msgspec.structs.replace(parts.info, constants=parts.info.constants[1:])
        with pytest.raises(ArtifactDamagedError, match="no weight for the program's constant"):
            replace(parts, info=info).open()

    def test_no_value_is_in_the_library(self, parts: Parts, program: Program, expected: NDArray[np.float32]) -> None:
        """Down to the smallest: RoPE's 8 frequencies, which a compiler likes to write into the code."""
        name = "causal_lm.model.rotary_emb.inv_freq"
        other = np.full(parts.weights[name].shape, 0.25, np.float32)
        with closing(changed(parts, name, address=other.ctypes.data).open()) as opened:
            assert np.abs(opened.run(parts.inputs())[0] - expected[0]).max() > 0.01


class TestInterface:
    def test_inputs_and_outputs_are_counted(self, parts: Parts) -> None:
        info = msgspec.structs.replace(parts.info, inputs=parts.info.inputs[:-1])
        with pytest.raises(ArtifactDamagedError, match=r"has \(7, 1\) inputs and outputs, its manifest says \(6, 1\)"):
            replace(parts, info=info).open()

    def test_a_file_that_is_no_library(self, parts: Parts, tmp_path: Path) -> None:
        (tmp_path / "model.so").write_bytes(b"no library")
        with pytest.raises(ArtifactMismatchError, match=r"model\.so cannot be loaded: .*build the artifact again"):
            replace(parts, library=tmp_path / "model.so").open()

    def test_a_library_that_is_no_program(self, parts: Parts) -> None:
        with pytest.raises(ArtifactMismatchError, match=r"cannot be loaded: .*AOTInductorModelContainer"):
            replace(parts, library=parts.operators[0]).open()

    def test_a_program_without_its_operators(self, parts: Parts) -> None:
        """In a process of its own: in this one they are loaded already."""
        script = f"""
from pathlib import Path
from pllm.runtime.artifact import Artifact
from pllm.runtime.errors import ArtifactMismatchError
from pllm.runtime.program import Program
artifact = Artifact.read({str(parts.library.parents[2])!r})
info = artifact.manifest.program("main")
try:
    Program.open(info, artifact.path(info.file), artifact.map_weights().tensors, [])
except ArtifactMismatchError as error:
    print(error)
"""
        done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
        assert (done.returncode, done.stderr) == (0, "")
        assert "cannot be loaded" in done.stdout
        assert re.search("undefined symbol: (aoti_torch_cpu_|pllm_)", done.stdout)


def test_a_step_leaks_no_memory(parts: Parts, program: Program) -> None:
    """Tensors of inputs and outputs are given back, after steps that fail, too."""
    bad = parts.inputs() | {"block_table": np.array([[9], [9]], np.int32)}
    good = parts.inputs() | {"logits_index": np.zeros(2000, np.int64)}  # a megabyte of logits

    def steps() -> None:
        for _ in range(100):
            program.run(good)
            with pytest.raises(PllmError):
                program.run(bad)

    steps()
    before = resident()
    steps()
    assert resident() - before < 20 << 20


def resident() -> int:
    ctypes.CDLL(None).malloc_trim(0)
    pages = Path("/proc/self/statm").read_text(encoding="ascii").split()[1]
    return int(pages) * 4096

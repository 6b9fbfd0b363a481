"""A rehearsal: the unfinished artifact, opened as the runtime will open it, over a small KV pool."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from pllm.kernels.cpu.library import CpuLibrary
from pllm.runtime.artifact import MappedWeights
from pllm.runtime.engine import Engine
from pllm.runtime.kv_pool import KvPool
from pllm.runtime.machine import cpu_count
from pllm.runtime.manifest import KvInfo, ProgramInfo
from pllm.runtime.model_runner import ModelRunner
from pllm.runtime.program import Program, load_torch
from pllm.runtime.safetensors_file import SafetensorsFile
from pllm.runtime.scheduler import Scheduler
from pllm.runtime.scheduler_config import LOGIT_ROWS, SchedulerConfig

if TYPE_CHECKING:
    from pllm.build.pipeline import Build

__all__ = ["Rehearsal", "RehearsalSpec", "rehearsal"]

_CONTEXT = 256


class RehearsalSpec(msgspec.Struct, frozen=True, kw_only=True):
    """What is to be opened, as another process can be told. Files are named within ``directory``."""

    directory: str
    program: ProgramInfo
    operators: tuple[str, ...]
    weights: tuple[str, ...]
    kv: KvInfo
    max_num_seqs: int
    max_num_batched_tokens: int
    max_model_len: int
    num_threads: int
    vocab_size: int

    @classmethod
    def of(cls, build: "Build") -> "RehearsalSpec":
        """What is in the staging folder."""
        engine = build.recipe.engine
        return cls(
            directory=str(build.staging.directory.absolute()),
            program=build.programs[0],
            operators=build.operators,
            weights=build.weights.files,
            kv=build.kv,
            max_num_seqs=engine.max_num_seqs,
            max_num_batched_tokens=max(engine.max_num_batched_tokens, engine.max_num_seqs),
            max_model_len=min(int(engine.max_model_len), max(_CONTEXT, engine.max_num_batched_tokens)),
            num_threads=engine.threads if isinstance(engine.threads, int) else cpu_count(),
            vocab_size=build.model.vocab_size,
        )


@dataclass(frozen=True, slots=True)
class Rehearsal:
    """The opened program and what it runs on."""

    program: Program
    library: CpuLibrary
    pool: KvPool
    runner: ModelRunner
    config: SchedulerConfig
    num_weight_bytes: int
    """Of the mapped files, all of whose pages are there."""

    def engine(self) -> Engine:
        """The real engine over the program."""
        return Engine(Scheduler(self.config), self.runner)

    def forward(self, sequences: list[tuple[int, list[int]]], *, every_position: bool = False) -> NDArray[np.float32]:
        """Logits of one step; each sequence is (tokens already in the cache, its new tokens), on blocks of its own.

        One row a sequence, its last position's, or with ``every_position`` one row a new token.
        """
        block = self.config.block_size
        blocks = [-(-(start + len(ids)) // block) for start, ids in sequences]
        table = np.zeros((len(sequences), max(blocks)), np.int32)
        first = 0
        for row, count in zip(table, blocks, strict=True):
            row[:count] = range(first, first + count)
            first += count
        ends = np.cumsum([0, *(len(ids) for _, ids in sequences)])
        inputs: dict[str, NDArray[Any]] = {
            "input_ids": np.array([token for _, ids in sequences for token in ids], np.int64),
            "positions": np.concatenate([np.arange(start, start + len(ids)) for start, ids in sequences]),
            "block_table": table,
            "query_start": ends.astype(np.int32),
            "context_len": np.array([start + len(ids) for start, ids in sequences], np.int32),
            "logits_index": np.arange(ends[-1]) if every_position else ends[1:] - 1,
            "kv": self.pool.array,
        }
        return self.program.run(inputs)


@contextmanager
def rehearsal(spec: RehearsalSpec) -> Iterator[Rehearsal]:
    """Open it, all its memory taken. The pool holds every sequence at a few hundred tokens, and the largest step
    beside them."""
    directory, block = Path(spec.directory), spec.kv.block_size
    operators = [directory / name for name in spec.operators]
    num_blocks = spec.max_num_seqs * -(-_CONTEXT // block) + -(-spec.max_model_len // block)
    with ExitStack() as resources:
        if spec.program.calls_torch:
            load_torch()
        library = CpuLibrary.open(operators[0])
        library.set_num_threads(spec.num_threads)
        files = [directory / name for name in spec.weights]
        weights = MappedWeights([SafetensorsFile(path, populate=True) for path in files])
        resources.callback(weights.close)
        program = Program.open(spec.program, directory / spec.program.file, weights.tensors, operators)
        resources.callback(program.close)
        pool = KvPool(spec.kv, num_blocks)
        resources.callback(pool.close)
        pool.wait_taken()
        config = SchedulerConfig(
            max_num_seqs=spec.max_num_seqs,
            max_num_batched_tokens=spec.max_num_batched_tokens,
            max_model_len=spec.max_model_len,
            block_size=block,
            num_blocks=num_blocks,
            prefill_chunk=spec.max_num_batched_tokens,
            max_logit_rows=max(LOGIT_ROWS, spec.max_num_seqs),
            vocab_size=spec.vocab_size,
        )
        runner = ModelRunner(program, pool, library, config, num_threads=spec.num_threads)
        yield Rehearsal(program, library, pool, runner, config, sum(path.stat().st_size for path in files))

"""A rehearsal: the unfinished artifact, opened as the runtime will open it, over a small KV pool."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pllm.build.pipeline import Build
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
from pllm.runtime.scheduler_config import SchedulerConfig

__all__ = ["Rehearsal", "RehearsalSpec", "rehearsal"]

_CONTEXT = 256


@dataclass(frozen=True, slots=True)
class Rehearsal:
    """The opened program and what it runs on."""

    program: Program
    pool: KvPool
    library: CpuLibrary
    config: SchedulerConfig
    num_threads: int

    def engine(self) -> Engine:
        """The real engine over the program."""
        runner = ModelRunner(self.program, self.pool, self.library, self.config, num_threads=self.num_threads)
        return Engine(Scheduler(self.config), runner)

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


@dataclass(frozen=True, slots=True)
class RehearsalSpec:
    """What is to be opened, as another process can be told."""

    program: ProgramInfo
    library: Path
    operators: tuple[Path, ...]
    weights: tuple[Path, ...]
    kv: KvInfo
    max_num_seqs: int
    max_num_batched_tokens: int
    max_model_len: int
    num_threads: int
    vocab_size: int

    @classmethod
    def of(cls, build: Build) -> "RehearsalSpec":
        """What is in the staging folder."""
        engine, info = build.recipe.engine, build.programs[0]
        return cls(
            program=info,
            library=build.staging.path(info.file),
            operators=tuple(build.staging.path(name) for name in build.operators),
            weights=tuple(build.staging.path(name) for name in build.weights.files),
            kv=build.kv,
            max_num_seqs=engine.max_num_seqs,
            max_num_batched_tokens=max(engine.max_num_batched_tokens, engine.max_num_seqs),
            max_model_len=min(int(engine.max_model_len), max(_CONTEXT, engine.max_num_batched_tokens)),
            num_threads=engine.threads if isinstance(engine.threads, int) else cpu_count(),
            vocab_size=build.model.vocab_size,
        )


@contextmanager
def rehearsal(spec: RehearsalSpec) -> Iterator[Rehearsal]:
    """Open it. The pool holds every sequence at a few hundred tokens, and the largest step beside them."""
    block = spec.kv.block_size
    num_blocks = spec.max_num_seqs * -(-_CONTEXT // block) + -(-spec.max_model_len // block)
    with ExitStack() as resources:
        load_torch()
        library = CpuLibrary.open(spec.operators[0])
        library.set_num_threads(spec.num_threads)
        weights = MappedWeights([SafetensorsFile(path) for path in spec.weights])
        resources.callback(weights.close)
        program = Program.open(spec.program, spec.library, weights.tensors, spec.operators)
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
            max_logit_rows=spec.max_num_batched_tokens,
            vocab_size=spec.vocab_size,
        )
        yield Rehearsal(program, pool, library, config, spec.num_threads)

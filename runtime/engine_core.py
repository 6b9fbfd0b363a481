"""The engine core: an artifact, opened and ready to run. What loads, and in which order, is all here."""

from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

from pllm.kernels.cpu.library import CpuLibrary, OperatorError
from pllm.runtime.artifact import Artifact
from pllm.runtime.engine import Engine
from pllm.runtime.errors import ArtifactMismatchError, UserInputError
from pllm.runtime.grammar_store import GrammarStore
from pllm.runtime.kv_pool import KvPool
from pllm.runtime.latencies import Latencies
from pllm.runtime.machine import available_memory, cpu_count
from pllm.runtime.manifest import Manifest
from pllm.runtime.memory import MemoryPlan, MemorySetting
from pllm.runtime.model_runner import ModelRunner
from pllm.runtime.program import Program, load_torch
from pllm.runtime.scheduler import Scheduler
from pllm.runtime.scheduler_config import SchedulerConfig
from pllm.runtime.shipped_forms import shipped_forms

__all__ = ["LOGIT_ROWS", "EngineCore"]

_PROGRAM = "main"
LOGIT_ROWS = 64
"""A step's rows of logits, at least: prompts whose every token needs its logits advance by this many."""

LONGEST_STEP_MS = 500
"""Of prompt tokens no step takes more than were measured to take so long: a request that is aborted meanwhile holds its
blocks until the step ends, and that is to be within a second."""


class EngineCore:
    """An open artifact: its `manifest`, the memory `plan`, the `model_runner`, and the `engine` that drives it."""

    def __init__(
        self,
        manifest: Manifest,
        plan: MemoryPlan,
        engine: Engine,
        *,
        model_runner: ModelRunner,
        pool: KvPool,
        grammars: GrammarStore,
        resources: ExitStack,
    ) -> None:
        self.manifest = manifest
        self.plan = plan
        self.engine = engine
        self.model_runner = model_runner
        self._pool = pool
        self._grammars = grammars
        self._resources = resources

    @classmethod
    def open(
        cls,
        artifact: Path,
        *,
        max_num_seqs: int | None = None,
        memory: MemorySetting | None = None,
        threads: int | None = None,
        enable_prefix_caching: bool = True,
        max_waiting: int | None = None,
        opened_part: Callable[[str], None] | None = None,
    ) -> "EngineCore":
        """Open an artifact. Limits that are None are the artifact's own; they can only be lowered.

        ``opened_part`` is called with the name of each part as soon as it is open, for whoever measures a start.

        Returns when the weights' hashes have been verified, too. Raises ArtifactError and its kinds, DoesNotFitError
        where the memory is too little, UserInputError for limits that cannot be.
        """
        told = opened_part or _nobody
        available = available_memory()
        opened = Artifact.open(artifact)
        manifest = opened.manifest
        if manifest.requires.device != "cpu":
            raise ArtifactMismatchError(
                f"{artifact} is built for {manifest.requires.device}, which this version does not serve yet; build one "
                f"for the CPU: pllm build {manifest.provenance.recipe} --set device.kind=cpu"
            )
        plan = _plan(manifest, max_num_seqs, memory, available)
        num_threads = _threads(manifest, threads)
        info = manifest.program(_PROGRAM)
        config = SchedulerConfig(
            max_num_seqs=plan.max_num_seqs,
            max_num_batched_tokens=max(manifest.engine.max_num_batched_tokens, plan.max_num_seqs),
            max_model_len=plan.max_model_len,
            block_size=plan.block_size,
            num_blocks=plan.num_blocks,
            prefill_chunk=manifest.engine.prefill_chunk,
            max_prefill_tokens=Latencies.read(opened.path(manifest.latency)).prompt_tokens_within(LONGEST_STEP_MS),
            max_logit_rows=max(LOGIT_ROWS, plan.max_num_seqs),
            vocab_size=manifest.model.vocab_size,
            enable_prefix_caching=enable_prefix_caching,
            **({} if max_waiting is None else {"max_waiting": max_waiting}),
        )
        operators = [opened.path(name) for name in manifest.operators]
        told("manifest")
        with ExitStack() as resources:
            load_torch()
            told("torch")
            try:
                library = CpuLibrary.open(operators[0])
            except OperatorError as error:
                raise ArtifactMismatchError(str(error)) from error
            told("operators")
            weights = opened.map_weights()
            resources.callback(weights.close)
            told("weights")
            program = Program.open(info, opened.path(info.file), weights.tensors, operators)
            resources.callback(program.close)
            told("program")
            pool = KvPool(manifest.kv, plan.num_blocks)
            resources.callback(pool.close)
            runner = ModelRunner(program, pool, library, config, num_threads=num_threads)
            told("KV pool")
            opened.wait_verified()
            told("hashes")
            grammars = GrammarStore(opened.path(manifest.tokenizer[0]), config.vocab_size)
            resources.callback(grammars.close)
            if manifest.grammars is not None:
                for form in shipped_forms(artifact, manifest.grammars.files).values():
                    grammars.keep(form, manifest.grammars.eos_token_ids)
            engine = Engine(Scheduler(config), runner, grammars)
            return cls(
                manifest, plan, engine, model_runner=runner, pool=pool, grammars=grammars, resources=resources.pop_all()
            )
        raise AssertionError("unreachable: nothing above swallows an error")

    def wait_settled(self) -> None:
        """Return when nothing of the start goes on beside the engine any more: for measurements."""
        self._pool.wait_taken()
        self._grammars.wait_kept()

    def close(self) -> None:
        """Give everything back. No step may run any more."""
        self._resources.close()


def _nobody(_: str) -> None:
    """Nobody measures."""


def _plan(manifest: Manifest, max_num_seqs: int | None, memory: MemorySetting | None, available: int) -> MemoryPlan:
    built = manifest.engine
    if max_num_seqs is not None and not 1 <= max_num_seqs <= built.max_num_seqs:
        raise UserInputError(
            f"max_num_seqs={max_num_seqs} must be 1 to {built.max_num_seqs}, as the artifact was built: to raise it, "
            f"build again with --set engine.max_num_seqs={max_num_seqs}"
        )
    try:
        return MemoryPlan.solve(
            manifest.memory,
            block_size=manifest.kv.block_size,
            max_model_len=built.max_model_len,
            max_num_seqs=built.max_num_seqs if max_num_seqs is None else max_num_seqs,
            memory=built.memory if memory is None else memory,
            available=available,
        )
    except ValueError as error:
        raise UserInputError(f"memory={memory!r} {error}") from error


def _threads(manifest: Manifest, threads: int | None) -> int:
    if threads is not None and not 1 <= threads <= 1024:
        raise UserInputError(f"threads={threads} must be 1 to 1024")
    if threads is not None:
        return threads
    return manifest.engine.threads if isinstance(manifest.engine.threads, int) else cpu_count()

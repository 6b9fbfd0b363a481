"""The engine core: an artifact, opened and ready to run. What loads, and in which order, is all here."""

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pllm.kernels.cpu.library import CpuLibrary, OperatorError
from pllm.runtime.artifact import Artifact
from pllm.runtime.engine import Engine, ModelRunner
from pllm.runtime.errors import ArtifactMismatchError, UserInputError
from pllm.runtime.grammar_store import GrammarStore
from pllm.runtime.kv_pool import KvPool
from pllm.runtime.latencies import Latencies
from pllm.runtime.machine import available_memory, cpu_count
from pllm.runtime.manifest import Manifest
from pllm.runtime.memory import MemoryLedger, MemoryPlan, MemorySetting, parse_memory, setting_for
from pllm.runtime.model_runner import ModelRunner as CpuModelRunner
from pllm.runtime.program import Program, load_torch
from pllm.runtime.prompt_pace import LONGEST_STEP
from pllm.runtime.scheduler import Scheduler
from pllm.runtime.scheduler_config import LOGIT_ROWS, SchedulerConfig
from pllm.runtime.shipped_forms import shipped_forms

__all__ = ["EngineCore"]

_PROGRAM = "main"


class EngineCore:
    """An open artifact: its `manifest` and measured `latencies`, the memory `plan`, the `model_runner`, and the
    `engine` that drives it."""

    def __init__(
        self,
        manifest: Manifest,
        plan: MemoryPlan,
        engine: Engine,
        *,
        model_runner: ModelRunner,
        settle: Callable[[], None],
        latencies: Latencies,
        resources: ExitStack,
        notices: tuple[str, ...] = (),
    ) -> None:
        self.manifest = manifest
        self.latencies = latencies
        self.plan = plan
        self.engine = engine
        self.model_runner = model_runner
        self.notices = notices
        """What whoever starts it should know: how its memory was cut, that it was tuned for another GPU."""
        self._settle = settle
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
        on_gpu = manifest.requires.device == "cuda"
        asked = _Asked(manifest, max_num_seqs, memory)
        latencies = Latencies.read(opened.path(manifest.latency))

        def config_of(plan: MemoryPlan) -> SchedulerConfig:
            return SchedulerConfig(
                max_num_seqs=plan.max_num_seqs,
                max_num_batched_tokens=max(manifest.engine.max_num_batched_tokens, plan.max_num_seqs),
                max_model_len=plan.max_model_len,
                block_size=plan.block_size,
                num_blocks=plan.num_blocks,
                prefill_chunk=manifest.engine.prefill_chunk,
                max_prefill_tokens=latencies.prompt_tokens_within(1e3 * LONGEST_STEP),
                max_logit_rows=max(LOGIT_ROWS, plan.max_num_seqs),
                vocab_size=manifest.model.vocab_size,
                enable_prefix_caching=enable_prefix_caching,
                lookahead_tokens=1 if on_gpu else 0,
                **({} if max_waiting is None else {"max_waiting": max_waiting}),
            )

        told("manifest")
        runner: ModelRunner
        with ExitStack() as resources:
            if on_gpu:
                # For a GPU only: it imports torch.
                from pllm.runtime.cuda.open_model import open_model  # noqa: PLC0415

                plan, runner, notices = open_model(
                    opened,
                    solve=asked.solve,
                    terms=asked.fit,
                    config_of=config_of,
                    told=told,
                    resources=resources,
                )
                settle: Callable[[], None] = _settled
            else:
                plan, notices = asked.solve(manifest.memory, available), ()
                num_threads = _threads(manifest, threads)
                runner, settle = _open_on_cpu(opened, config_of(plan), num_threads, told, resources)
            opened.wait_verified()
            told("hashes")
            config = config_of(plan)
            grammars = GrammarStore(opened.path(manifest.tokenizer[0]), config.vocab_size)
            resources.callback(grammars.close)
            if manifest.grammars is not None:
                for form in shipped_forms(artifact, manifest.grammars.files).values():
                    grammars.keep(form, manifest.grammars.eos_token_ids)
            engine = Engine(Scheduler(config), runner, grammars)

            def settled() -> None:
                settle()
                grammars.wait_kept()

            return cls(
                manifest,
                plan,
                engine,
                model_runner=runner,
                settle=settled,
                latencies=latencies,
                resources=resources.pop_all(),
                notices=tuple(notice for notice in (plan.notice, *notices) if notice is not None),
            )
        raise AssertionError("unreachable: nothing above swallows an error")

    def wait_settled(self) -> None:
        """Return when nothing of the start goes on beside the engine any more: for measurements."""
        self._settle()

    def close(self) -> None:
        """Give everything back. No step may run any more."""
        self._resources.close()


def _nobody(_: str) -> None:
    """Nobody measures."""


def _settled() -> None:
    """Nothing goes on beside the engine."""


def _open_on_cpu(
    opened: Artifact, config: SchedulerConfig, num_threads: int, told: Callable[[str], None], resources: ExitStack
) -> tuple[ModelRunner, Callable[[], None]]:
    """What runs steps on this machine's CPU, and what waits until its memory is there."""
    manifest = opened.manifest
    info = manifest.program(_PROGRAM)
    operators = [opened.path(name) for name in manifest.operators]
    if info.calls_torch:
        load_torch()
        told("torch")
    try:
        library = CpuLibrary.open(operators[0])
    except OperatorError as error:
        raise ArtifactMismatchError(str(error)) from error
    if tuning := manifest.engine.tuning:
        library.set_tiling(tuning.streamed, tuning.blocked, tuning.rows)
    told("operators")
    weights = opened.map_weights()
    resources.callback(weights.close)
    told("weights")
    program = Program.open(info, opened.path(info.file), weights.tensors, operators)
    resources.callback(program.close)
    told("program")
    pool = KvPool(manifest.kv, config.num_blocks)
    resources.callback(pool.close)
    told("KV pool")
    return CpuModelRunner(program, pool, library, config, num_threads=num_threads), pool.wait_taken


@dataclass(frozen=True, slots=True)
class _Asked:
    """The limits that were asked for, over what the artifact was built for."""

    manifest: Manifest
    max_num_seqs: int | None
    memory: MemorySetting | None

    def fit(self) -> dict[str, Any]:
        """The plan's terms but for what is measured. Raises UserInputError for more sequences than were built for."""
        built, asked = self.manifest.engine, self.max_num_seqs
        if asked is not None and not 1 <= asked <= built.max_num_seqs:
            raise UserInputError(
                f"max_num_seqs={asked} must be 1 to {built.max_num_seqs}, as the artifact was built: to raise it, "
                f"build again with --set engine.max_num_seqs={asked}"
            )
        memory = built.memory if self.memory is None else self.memory
        try:
            parse_memory(memory)
        except ValueError as error:
            raise UserInputError(f"memory={memory!r} {error}") from error
        return {
            "block_size": self.manifest.kv.block_size,
            "max_model_len": built.max_model_len,
            "max_num_seqs": built.max_num_seqs if asked is None else asked,
            "memory": setting_for(self.manifest.requires.device, memory),
        }

    def solve(self, ledger: MemoryLedger, available: int) -> MemoryPlan:
        """Raises DoesNotFitError with the numbers, and as :meth:`fit`."""
        return MemoryPlan.solve(ledger, available=available, **self.fit())


def _threads(manifest: Manifest, threads: int | None) -> int:
    if threads is not None and not 1 <= threads <= 1024:
        raise UserInputError(f"threads={threads} must be 1 to 1024")
    return manifest.engine.num_threads(cpu_count()) if threads is None else threads

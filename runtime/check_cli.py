"""``pllm check``: will it run here, and how many requests fit? No weights are read, and nothing is loaded."""

from argparse import ArgumentParser, Namespace

from rich.console import Console
from rich.table import Table

from pllm.runtime.artifact import Artifact
from pllm.runtime.errors import ArtifactMismatchError, UserInputError
from pllm.runtime.machine import Machine, available_memory, cpu_count
from pllm.runtime.manifest import mismatch, tuning_notice
from pllm.runtime.memory import MemoryPlan, format_bytes, parse_memory, setting_for

__all__ = ["add_arguments", "main"]


def add_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("artifact", metavar="ARTIFACT", help="the folder that pllm build made")
    parser.add_argument("--memory", metavar="SIZE", help='as for pllm run: "auto", "4GiB", or a share of what is free')
    parser.add_argument("--max-num-seqs", type=int, metavar="N", help="as for pllm run (default: as built)")
    parser.add_argument("--max-model-len", type=int, metavar="N", help="a shorter context than it was built for")


def main(arguments: Namespace) -> int:
    """Print the ledger and the concurrency; exit code 4 (an ArtifactError) where it cannot run here."""
    artifact = Artifact.read(arguments.artifact)
    machine = Machine.this(artifact.manifest.requires.device)
    reason = mismatch(artifact.manifest, machine)
    # Without the GPU that it wants there is nothing to plan with; a CPU's plan says more than its mismatch does.
    if reason is not None and artifact.manifest.requires.device == "cuda":
        raise ArtifactMismatchError(f"{artifact.directory} cannot run here: {reason}")
    plan = _plan(artifact, arguments, available_memory() if machine.gpu is None else machine.gpu.free_memory)
    console = Console(highlight=False)
    console.print(f"[bold]{artifact.manifest.name}[/]: {len(artifact.manifest.files)} files, all there in their sizes")
    if reason is not None:
        raise ArtifactMismatchError(f"{artifact.directory} cannot run here: {reason}")
    where = f"{cpu_count()} cores" if machine.gpu is None else f"{machine.gpu.name} ({machine.gpu.sm})"
    needed = artifact.manifest.requires.torch
    console.print(f"runs here: {f'torch {needed}' if needed else 'without torch'}, {where}")
    tuning = tuning_notice(artifact.manifest, machine)
    if tuning is not None:
        console.print(f"note: {tuning}", soft_wrap=True)
    console.print(_ledger(plan))
    console.print(_concurrency(plan))
    if plan.notice is not None:
        console.print(f"note: {plan.notice}", soft_wrap=True)
    return 0


def _plan(artifact: Artifact, arguments: Namespace, available: int) -> MemoryPlan:
    manifest, engine = artifact.manifest, artifact.manifest.engine
    for flag, value, most in (
        ("--max-num-seqs", arguments.max_num_seqs, 4096),
        ("--max-model-len", arguments.max_model_len, engine.max_model_len),
    ):
        if value is not None and not 1 <= value <= most:
            raise UserInputError(f"{flag} must be from 1 to {most}, not {value}")
    try:
        parse_memory(engine.memory if arguments.memory is None else arguments.memory)
    except ValueError as error:
        raise UserInputError(f"--memory {error}") from None
    return MemoryPlan.solve(
        manifest.memory,
        block_size=manifest.kv.block_size,
        max_model_len=arguments.max_model_len or engine.max_model_len,
        max_num_seqs=arguments.max_num_seqs or engine.max_num_seqs,
        memory=setting_for(manifest.requires.device, engine.memory if arguments.memory is None else arguments.memory),
        available=available,
    )


def _ledger(plan: MemoryPlan) -> Table:
    table = Table(title="memory", title_justify="left")
    table.add_column("part")
    table.add_column("bytes", justify="right")
    table.add_column("", justify="right")
    parts = {
        "weights": plan.ledger.weights,
        "activations": plan.ledger.activations,
        **({"graphs": plan.ledger.graphs} if plan.ledger.graphs else {}),
        "runtime": plan.ledger.runtime,
        f"KV pool, {plan.num_blocks} blocks of {plan.block_size} tokens": plan.kv_bytes,
    }
    for name, size in parts.items():
        table.add_row(name, f"{size:,}", format_bytes(size))
    table.add_section()
    table.add_row("in all", f"{plan.total_bytes:,}", format_bytes(plan.total_bytes))
    table.add_row("available now", f"{plan.available:,}", format_bytes(plan.available))
    return table


def _concurrency(plan: MemoryPlan) -> Table:
    table = Table(title="requests at once", title_justify="left")
    table.add_column("context of each, tokens", justify="right")
    table.add_column("fit", justify="right")
    contexts = [128 << step for step in range(20) if 128 << step < plan.max_model_len]
    for context in [*contexts[-6:], plan.max_model_len]:
        table.add_row(str(context), str(plan.concurrency(context)))
    return table

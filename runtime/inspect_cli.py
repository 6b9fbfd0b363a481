"""``pllm inspect``: what an artifact holds, in tables. Nothing is loaded, and it need not fit this machine."""

from argparse import ArgumentParser, Namespace

from rich.console import Console
from rich.table import Table

from pllm.runtime.artifact import MANIFEST, Artifact
from pllm.runtime.gpu import version_text
from pllm.runtime.manifest import GpuRequires, Manifest, ProgramInfo
from pllm.runtime.memory import format_bytes

__all__ = ["add_arguments", "main"]


def add_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("artifact", metavar="ARTIFACT", help="the folder that pllm build made")
    parser.add_argument("--json", action="store_true", help="print the manifest as it is")


def main(arguments: Namespace) -> int:
    artifact = Artifact.read(arguments.artifact)
    if arguments.json:
        print((artifact.directory / MANIFEST).read_text(encoding="utf-8"), end="")
        return 0
    console = Console(highlight=False)
    manifest = artifact.manifest
    console.print(_facts("artifact", _identity(manifest)))
    console.print(_facts("model", _model(manifest)))
    for program in manifest.programs:
        console.print(_program(program))
    if manifest.requires.gpu is not None:
        console.print(_kernels(manifest.requires.gpu))
    console.print(_facts("memory", _memory(manifest)))
    console.print(_facts("engine, as built", {name: str(value) for name, value in _engine(manifest).items()}))
    console.print(_facts("certificate", _certificate(manifest)))
    console.print(_files(manifest))
    return 0


def _facts(title: str, facts: dict[str, str]) -> Table:
    table = Table(title=title, title_justify="left", show_header=False)
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in facts.items():
        table.add_row(name, value)
    return table


def _identity(manifest: Manifest) -> dict[str, str]:
    origin, needs = manifest.provenance, manifest.requires
    torch = "no torch" if needs.torch is None else f"torch {needs.torch}"
    facts = {
        "name": manifest.name,
        "made from": f"{origin.recipe}: {origin.checkpoint}" + (f" at {origin.revision}" if origin.revision else ""),
        "made by": f"pllm {origin.pllm}, transformers {origin.transformers}, torch {origin.torch}",
        "format": str(manifest.format_version),
        "requires": f"{needs.device} on {needs.machine}, {torch}, glibc {needs.glibc} or later",
        "instruction sets": ", ".join(needs.isa) or "the baseline",
    }
    if needs.gpu is not None:
        driver = f"a driver for CUDA {version_text(needs.gpu.cuda)} or later"
        facts["GPU"] = f"{needs.gpu.sm}, {driver}; tuned on {needs.gpu.name}"
    return facts


def _model(manifest: Manifest) -> dict[str, str]:
    model, kv, weights, grammars = manifest.model, manifest.kv, manifest.weights, manifest.grammars
    return {
        "architecture": f"{model.architecture}, {model.num_layers} layers",
        "parameters": f"{model.num_parameters:,} in {model.dtype}",
        "vocabulary": f"{model.vocab_size:,}, ends with {', '.join(map(str, model.eos_token_ids)) or 'nothing'}",
        "context": f"{model.context:,} tokens",
        "weights": f"{weights.num_tensors} tensors, {format_bytes(weights.num_bytes)} in {len(weights.files)} files",
        "structured outputs": ", ".join(grammars.files) if grammars is not None else "any that a request gives",
        "KV cache": f"{kv.dtype}, {kv.num_kv_heads} heads of {kv.head_dim}, blocks of {kv.block_size} tokens",
    }


def _program(program: ProgramInfo) -> Table:
    table = Table(title=f"program {program.name} ({len(program.constants)} weights)", title_justify="left")
    for column in ("", "tensor", "dtype", "shape"):
        table.add_column(column)
    for kind, tensors in (("in", program.inputs), ("out", program.outputs)):
        for tensor in tensors:
            table.add_row(kind, tensor.name, tensor.dtype, " x ".join(map(str, tensor.shape)) or "scalar")
    table.add_section()
    for name, extent in program.dims.items():
        table.add_row("dim", name, "", f"{extent.min} to {extent.max}")
    return table


def _kernels(gpu: GpuRequires) -> Table:
    table = Table(title="kernels' configurations, as chosen at build", title_justify="left")
    for column in ("kernel", "for", "configuration"):
        table.add_column(column, overflow="fold")
    table.add_column("us", justify="right")
    for choice in gpu.kernels:
        values = ", ".join(f"{name} {value}" for name, value in choice.values.items())
        took = "as shipped" if choice.us is None else f"{choice.us:.1f}"
        table.add_row(choice.kernel, " x ".join(map(str, choice.shape)), values, took)
    return table


def _memory(manifest: Manifest) -> dict[str, str]:
    ledger = manifest.memory
    return {
        "weights": format_bytes(ledger.weights),
        "activations": format_bytes(ledger.activations),
        "runtime": format_bytes(ledger.runtime),
        "one KV block": format_bytes(ledger.kv_block),
        "KV pool": f"decided at the start, from memory = {manifest.engine.memory} (pllm check says how much)",
    }


def _engine(manifest: Manifest) -> dict[str, object]:
    engine = manifest.engine
    return {name: getattr(engine, name) for name in engine.__struct_fields__ if getattr(engine, name) is not None}


def _certificate(manifest: Manifest) -> dict[str, str]:
    done = manifest.certificate
    return {
        "reference": done.reference,
        "compared": f"{done.num_tokens} tokens of {done.num_prompts} prompts",
        "largest logit error": f"{done.max_logit_error:.3g} of {done.bound:.3g} allowed",
        "KL divergence": f"{done.kl_divergence:.2g} nats",
        "skipped as ties": f"{done.skipped_share:.2%}",
    }


def _files(manifest: Manifest) -> Table:
    table = Table(title=f"{len(manifest.files)} files", title_justify="left")
    table.add_column("file", overflow="fold")
    table.add_column("bytes", justify="right")
    table.add_column("SHA-256")
    for name, entry in manifest.files.items():
        table.add_row(name, f"{entry.size:,}", f"{entry.sha256[:16]}…")
    return table

"""``pllm verify``: the artifact's proofs, repeated on this machine: every hash, the golden tokens, the latencies."""

import time
from argparse import ArgumentParser, Namespace

from rich.console import Console
from rich.table import Table

from pllm.runtime.artifact import Artifact
from pllm.runtime.errors import ArtifactError
from pllm.runtime.finding import Finding
from pllm.runtime.memory import format_bytes

__all__ = ["add_arguments", "findings_table", "main"]


def add_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("artifact", metavar="ARTIFACT", help="the folder that pllm build made")
    parser.add_argument("--hashes-only", action="store_true", help="do not load the model")


def main(arguments: Namespace) -> int:
    """Print what was found; an ArtifactError (exit code 4) where a hash or a golden token differs."""
    console = Console(highlight=False)
    began = time.monotonic()
    artifact = Artifact.open(arguments.artifact, verify="full")
    artifact.wait_verified()
    size = sum(entry.size for entry in artifact.manifest.files.values())
    console.print(
        f"[green]✓[/] {len(artifact.manifest.files)} files, {format_bytes(size)}: every SHA-256 is the manifest's "
        f"({time.monotonic() - began:.1f} s)"
    )
    if arguments.hashes_only:
        return 0
    from pllm.runtime.certificate import verify_golden  # noqa: PLC0415  (native libraries: not for hashes)

    findings = list(verify_golden(artifact))
    console.print(findings_table(findings))
    wrong = [finding for finding in findings if finding.agrees is False]
    if wrong:
        raise ArtifactError(
            f"{artifact.directory} is whole, and computes something else here than where it was built "
            f"({len(wrong)} of {len(findings)} findings differ); build it again on this machine: "
            f"pllm build {artifact.manifest.provenance.recipe} --force"
        )
    return 0


def findings_table(findings: list[Finding]) -> Table:
    """The findings, one a row; what merely informs has no mark."""
    table = Table()
    for column in ("", "what", "when built", "here"):
        table.add_column(column, overflow="fold")
    marks = {True: "[green]✓[/]", False: "[red]✗[/]", None: ""}
    for finding in findings:
        table.add_row(marks[finding.agrees], finding.what, finding.built, finding.here)
    return table

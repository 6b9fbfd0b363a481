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
    kinds = parser.add_mutually_exclusive_group()
    kinds.add_argument("--hashes-only", action="store_true", help="do not load the model")
    kinds.add_argument("--perf", action="store_true", help="the latency table against this machine now, and no tokens")


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
    if arguments.perf:
        _show_perf(artifact, console)
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


def _show_perf(artifact: Artifact, console: Console) -> None:
    """Raises MeasurementError (exit code 3) where the machine is too restless to be compared."""
    from pllm.runtime.perf_check import check_perf  # noqa: PLC0415  (as above)

    found = check_perf(artifact)
    table = Table("step", "when built, ms", "here, ms", "ratio")
    for pair in found.pairs:
        row = pair.row
        what = f"{row.num_tokens} tokens, {row.num_seqs} sequences of {row.context}"
        table.add_row(what, f"{row.ms:.2f}", f"{pair.ms:.2f}", f"{pair.ratio:.2f}")
    console.print(table)
    if found.calibrated_ratio is None or found.speed is None:
        console.print(f"median ratio {found.ratio:.2f}; the build recorded no calibration, so machines may differ")
    else:
        console.print(
            f"median ratio {found.ratio:.2f}; the calibration kernel takes {found.speed:.2f} times as long as beside "
            f"the table, so {found.calibrated_ratio:.2f} at equal speed of the cores",
            soft_wrap=True,
        )
    if found.built_on and found.built_on != found.cpu:
        console.print(f"built on {found.built_on}; this is {found.cpu}", soft_wrap=True, markup=False)


def findings_table(findings: list[Finding]) -> Table:
    """The findings, one a row; what merely informs has no mark."""
    table = Table()
    for column in ("", "what", "when built", "here"):
        table.add_column(column, overflow="fold")
    marks = {True: "[green]✓[/]", False: "[red]✗[/]", None: ""}
    for finding in findings:
        table.add_row(marks[finding.agrees], finding.what, finding.built, finding.here)
    return table

"""``pllm gate``: whether a change made serving slower, larger or later."""

from argparse import ArgumentParser, Namespace
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

from pllm.runtime.errors import UserInputError
from pllm.runtime.gate.side import Side

if TYPE_CHECKING:
    from pllm.runtime.gate.report import GateReport

__all__ = ["add_arguments", "main"]

_EPILOG = (
    "exit codes: 0 pass, 5 a regression, 3 void (nothing can be said, which is no pass), 2 the input is wrong, "
    "4 an artifact does not open here"
)


def add_arguments(parser: ArgumentParser) -> None:
    parser.epilog = _EPILOG
    parser.add_argument(
        "artifacts", nargs="*", type=Path, metavar="ARTIFACT", help="BASE NEW; or one, against its own certificate"
    )
    checkouts = parser.add_argument_group("two checkouts instead, each built and run by its own code")
    checkouts.add_argument("--base-ref", metavar="REF", help="the base: a commit, a branch or a tag; new is this tree")
    checkouts.add_argument("--pin", type=Path, metavar="FILE", help="the base and the recipe are what this file says")
    checkouts.add_argument("--recipe", metavar="FILE", help="what both build (recipes/quickstart.toml)")
    checkouts.add_argument("--work", type=Path, metavar="DIR", help="where both are built, and kept for the next time")
    parser.add_argument(
        "--benchmarks", nargs=2, type=Path, metavar=("BASE", "NEW"), help="two files that pytest --benchmark-json wrote"
    )
    parser.add_argument("--only", choices=["counts", "timings"], help="what has no noise, or what has")
    parser.add_argument("--short", action="store_true", help="a minute or two: decoding, a small prompt, memory")
    parser.add_argument("--quantities", nargs="+", metavar="PATTERN", help="what is timed, such as 'decode*' (all)")
    parser.add_argument("--seconds", type=float, metavar="S", help="time to settle them in (420; --short: 240)")
    parser.add_argument("--threads", type=int, default=1, metavar="N", help="of each side (%(default)s)")
    parser.add_argument("--itself", action="store_true", help="let base and new be the same, to see a machine's noise")
    for kind in ("json", "markdown", "html"):
        parser.add_argument(f"--{kind}", type=Path, metavar="FILE", help=f"write the report there as {kind}")


def main(arguments: Namespace) -> int:
    """Print the report and write it; the verdict's exit code."""
    from pllm.runtime.bench.report import check_target, say
    from pllm.runtime.gate.gate import SHORT, GateOptions, gate, gate_certificate
    from pllm.runtime.gate.page import page

    targets = (arguments.json, arguments.markdown, arguments.html)
    for target in targets:
        check_target(target)
    options = replace(
        SHORT if arguments.short else GateOptions(),
        only=arguments.only,
        threads=arguments.threads,
        itself=arguments.itself,
    )
    if arguments.seconds is not None:
        options = replace(options, settings=replace(options.settings, seconds=arguments.seconds))
    if arguments.quantities is not None:
        options = replace(options, quantities=tuple(arguments.quantities))
    if arguments.benchmarks is not None:
        report = _of_benchmarks(arguments)
    elif len(arguments.artifacts) == 1 and not (arguments.base_ref or arguments.pin):
        report = gate_certificate(Side("here", arguments.artifacts[0]), options, said=say)
    else:
        with _sides(arguments) as (base, new):
            report = gate(base, new, options, said=say)
    for target, content in zip(targets, (report.document(), report.markdown(), page(report)), strict=True):
        if target is not None:
            target.write_text(content, encoding="utf-8")
    console = Console(highlight=False)
    console.print(report.table())
    console.print(report.sentence, soft_wrap=True, markup=False)
    for note in report.notes:
        console.print(note, soft_wrap=True, markup=False)
    return report.verdict.exit_code


def _of_benchmarks(arguments: Namespace) -> "GateReport":
    from pllm.runtime.bench.facts import MachineFacts, now
    from pllm.runtime.gate.benchmarks import check_benchmarks, read_benchmarks
    from pllm.runtime.gate.report import GateReport

    if arguments.artifacts or arguments.base_ref or arguments.pin:
        raise UserInputError("--benchmarks compares two files: leave out artifacts, --base-ref and --pin")
    base, new = map(read_benchmarks, arguments.benchmarks)
    machine = MachineFacts.here("torch", "numpy")
    return GateReport({}, tuple(check_benchmarks(base, new)), None, {}, machine, now())


@contextmanager
def _sides(arguments: Namespace) -> Iterator[tuple[Side, Side]]:
    given = len(arguments.artifacts)
    if (arguments.base_ref or arguments.pin) and not given:
        from pllm.runtime.gate.checkouts import built_checkouts

        with built_checkouts(arguments.base_ref, arguments.pin, arguments.recipe, arguments.work) as sides:
            yield sides
        return
    if given != 2 or arguments.base_ref or arguments.pin:
        raise UserInputError("give one artifact, or two, or --base-ref REF, or --pin FILE; --help tells more")
    base, new = arguments.artifacts
    yield Side("base", base), Side("new", new)

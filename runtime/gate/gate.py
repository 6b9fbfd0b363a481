"""The gate: two sides in, a report out."""

from collections.abc import Callable, Collection, Sequence
from dataclasses import asdict, dataclass, field, replace
from fnmatch import fnmatch
from pathlib import Path
from typing import Literal

import msgspec

from pllm.runtime.bench.facts import MachineFacts, now
from pllm.runtime.errors import UserInputError
from pllm.runtime.gate.calibration import Calibration
from pllm.runtime.gate.check import Check, Verdict
from pllm.runtime.gate.counts import Counts, check_counts
from pllm.runtime.gate.double import double_of
from pllm.runtime.gate.facts import Facts, common_rows, facts_of, num_blocks
from pllm.runtime.gate.own_certificate import CertifiedTask, machine_check, run_against_certificate
from pllm.runtime.gate.quantity import FIRST_TOKEN, LEAST_BOUND, PEAK_MEMORY, READY, Quantity, tasks_for
from pllm.runtime.gate.report import GateReport
from pllm.runtime.gate.run import GateRun, GateSettings
from pllm.runtime.gate.side import Side
from pllm.runtime.gate.trio import Task, Trio, TrioSpec, measure_trio

__all__ = ["SHORT", "GateOptions", "gate", "gate_certificate"]

_COUNTS = Path("pllm", "runtime", "gate", "counts.py")
_OF_PROCESSES = (READY, FIRST_TOKEN, PEAK_MEMORY)


@dataclass(frozen=True, slots=True, kw_only=True)
class GateOptions:
    """``quantities``: patterns (``decode*``), of which each timed quantity must match one; ``itself``: let base and new
    be the same thing, for whoever wants to see how noisy a machine is."""

    settings: GateSettings = field(default_factory=GateSettings)
    only: Literal["counts", "timings"] | None = None
    quantities: Sequence[str] = ("*",)
    rounds: int = 12
    threads: int = 1
    itself: bool = False

    def wants(self, name: str) -> bool:
        """Whether a quantity is to be timed."""
        return any(fnmatch(name, pattern) for pattern in self.quantities)


SHORT = GateOptions(
    settings=GateSettings(seconds=240.0),
    quantities=("decode, ? *", "prefill, 32 *", "TPOT*", PEAK_MEMORY.name),  # of decode, up to nine sequences
)
"""A minute on a quiet machine, some on a restless one: what settles soon."""


def gate(base: Side, new: Side, options: GateOptions, said: Callable[[str], None] = lambda _: None) -> GateReport:
    """Compare. First what has no noise, then what has.

    Raises UserInputError where the two sides are one and the same, or serve different models; the error of a side that
    cannot be opened; MeasurementError for one that dies on the way.
    """
    machine = MachineFacts.here("torch", "numpy")
    facts = facts_of(base), facts_of(new)
    if facts[0].is_same(facts[1]) and not options.itself:
        raise UserInputError(
            f"{base.label} and {new.label} are the same program: the same code, the same files. Comparing a thing with "
            "itself proves nothing: choose another base (--itself shows how noisy the machine is)"
        )
    checks: list[Check] = []
    run = None
    if options.only != "timings":
        said("what has no noise: counts and sizes")
        checks += [_size(*facts), *check_counts(_counts(base), _counts(new))]
    if options.only != "counts":
        with double_of(base, facts[0].num_bytes) as double:
            run = _timed((base, double, new), facts, options, said)
        checks += run.checks()
    sides = {base.label: facts[0], new.label: facts[1]}
    return GateReport(sides, tuple(checks), run, asdict(options), machine, now())


def gate_certificate(side: Side, options: GateOptions, said: Callable[[str], None] = lambda _: None) -> GateReport:
    """An artifact against its own certificate; ``options.threads`` is not asked: it is as when it was built.

    Raises as `gate`.
    """
    machine = MachineFacts.here("torch", "numpy")
    facts = facts_of(side)
    calibration = Calibration()
    first = machine_check(facts, machine.cpu, min(calibration.seconds() for _ in range(10)))
    run = None
    if first.verdict is Verdict.PASS:
        tasks = [task for task in map(CertifiedTask, facts.rows) if options.wants(task.quantity.name)]
        if not tasks:
            raise _no_quantity(options, [CertifiedTask(row).quantity for row in facts.rows])
        spec = TrioSpec(side, side, side, (), 1, num_blocks([facts]), facts.threads)

        def measure(number: int, names: Collection[str]) -> Trio:
            wanted = tuple(task for task in tasks if task.quantity.name in names)
            return measure_trio(replace(spec, tasks=wanted), number, calibration.seconds)

        run = run_against_certificate(measure, tasks, options.settings, said)
    checks = (first, *(() if run is None else run.checks()))
    return GateReport({"certificate": facts, side.label: facts}, checks, run, asdict(options), machine, now())


def _no_quantity(options: GateOptions, quantities: Sequence[Quantity]) -> UserInputError:
    names = ", ".join(quantity.name for quantity in quantities)
    return UserInputError(f"no quantity is called {' or '.join(options.quantities)}: there are {names}")


def _counts(side: Side) -> Counts:
    """What the side's own code counts; nothing where that is older than the counts."""
    if side.path is not None and not (side.path / _COUNTS).is_file():
        return {}
    return msgspec.json.decode(side.told("pllm.runtime.gate.counts", str(side.artifact)), type=Counts)


def _timed(
    sides: tuple[Side, Side, Side], facts: tuple[Facts, Facts], options: GateOptions, said: Callable[[str], None]
) -> GateRun:
    possible = tasks_for(common_rows(*facts), min(side.max_model_len for side in facts))
    found = [*(quantity for task in possible for quantity in task.quantities), *_OF_PROCESSES]
    quantities = [quantity for quantity in found if options.wants(quantity.name)]
    if not quantities:
        raise _no_quantity(options, found)
    tasks = [task for task in possible if any(quantity in quantities for quantity in task.quantities)]
    spec = TrioSpec(*sides, tuple(tasks), options.rounds, num_blocks(facts), options.threads)
    calibration = Calibration()

    def measure(number: int, names: Collection[str]) -> Trio:
        wanted = tuple(task for task in tasks if _gives(task, names))
        return measure_trio(replace(spec, tasks=wanted), number, calibration.seconds)

    said("a trio to warm the page cache")
    measure_trio(replace(spec, rounds=1), 0, calibration.seconds)
    return GateRun.of(measure, quantities, options.settings, said=said)


def _gives(task: Task, names: Collection[str]) -> bool:
    return any(quantity.name in names for quantity in task.quantities)


def _size(base: Facts, new: Facts) -> Check:
    """Exact, and still with the common bound: another instruction in a program is no regression."""
    change = new.num_bytes / base.num_bytes - 1
    verdict = Verdict.REGRESSION if change > LEAST_BOUND else Verdict.PASS
    told = f"{100 * change:+.2f}%; bound {100 * LEAST_BOUND:+.1f}%"
    return Check("artifact size", base.num_bytes / (1 << 20), new.num_bytes / (1 << 20), verdict, told, "MiB")

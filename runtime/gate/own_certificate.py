"""An artifact against its own certificate: whether it is still as fast as when it was built.

The two never run in turn, for the build is over. So a machine that is not the one of the build, or runs at another
speed than then, makes the gate void; and since a row of the certificate is what one process saw, the bound is what one
process may see here by chance.
"""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from math import exp, log
from statistics import median, stdev

from pllm.runtime.gate.calibration import drift
from pllm.runtime.gate.check import Check, Verdict
from pllm.runtime.gate.facts import Facts
from pllm.runtime.gate.quantity import LEAST_BOUND, Quantity, name_of
from pllm.runtime.gate.run import MOST_DRIFT, GateRun, GateSettings
from pllm.runtime.gate.trio import Costs, Trio
from pllm.runtime.gate.turns import StepTurn, Took
from pllm.runtime.latencies import Latency

__all__ = ["CertifiedTask", "machine_check", "run_against_certificate"]

_REPEATS = 5  # as `certificate.measure_step` does it
_CHANCE = 3.0  # standard deviations of a single process


@dataclass(frozen=True, slots=True)
class CertifiedTask:
    """A row of the certificate, measured in the way in which the build measured it."""

    row: Latency
    every: int = 1

    @property
    def quantity(self) -> Quantity:
        return Quantity(name_of(self.row), "ms", 1e3)

    @property
    def quantities(self) -> tuple[Quantity, ...]:
        return (self.quantity,)

    @property
    def turn(self) -> StepTurn:
        row = self.row
        return StepTurn(
            num_seqs=row.num_seqs, num_tokens=row.num_tokens, context=row.context, seconds=0.0, least=_REPEATS
        )

    def costs(self, answers: Sequence[Took]) -> dict[Quantity, float]:
        """Of one side's answers: the median of all repeats, waits and all."""
        return {self.quantity: median(seconds for took in answers for seconds in took.seconds)}


def machine_check(facts: Facts, cpu: str, seconds: float) -> Check:
    """Whether this machine is that of the certificate, at the speed that it had: ``seconds`` of the kernel here."""
    name = "machine of the certificate"
    if facts.calibration is None:
        told = "the certificate does not say how fast its machine was: build the artifact again"
        return Check(name, None, 1e3 * seconds, Verdict.VOID, told, "ms")
    if facts.cpu != cpu:
        told = f"measured on {facts.cpu}, and this is {cpu}: times of two machines are not compared"
        return Check(name, 1e3 * facts.calibration, 1e3 * seconds, Verdict.VOID, told, "ms")
    same = drift([seconds], facts.calibration) <= MOST_DRIFT
    told = f"the calibration kernel; more than {MOST_DRIFT:.0%} apart is another speed"
    return Check(name, 1e3 * facts.calibration, 1e3 * seconds, Verdict.PASS if same else Verdict.VOID, told, "ms")


def run_against_certificate(
    measure: Callable[[int, Collection[str]], Trio],
    tasks: Collection[CertifiedTask],
    settings: GateSettings,
    said: Callable[[str], None],
) -> GateRun:
    """``measure`` gives trios of the same artifact three times. The first few say how much single processes differ,
    which is the bound; the others are compared with the certificate."""
    built = {name_of(task.row): task.row.ms / 1e3 for task in tasks}
    first = [measure(number, built) for number in range(settings.least)]
    quantities = []
    for task in tasks:
        logs = [log(cost) for trio in first for cost in trio.costs[task.quantity.name]]
        quantities.append(replace(task.quantity, bound=max(LEAST_BOUND, exp(_CHANCE * stdev(logs)) - 1)))

    def against(number: int, names: Collection[str]) -> Trio:
        trio = measure(number, names)
        return replace(trio, costs={name: _beside(built[name], trio.costs[name]) for name in built if name in names})

    return GateRun.of(against, quantities, settings, said=said)


def _beside(built: float, costs: Costs) -> Costs:
    """The certificate as the base; as its double, the certificate with what two processes here differ by."""
    one, other, third = costs
    return built, built * other / one, third

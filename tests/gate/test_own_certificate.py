"""An artifact against its own certificate."""

from collections.abc import Collection

import msgspec
import pytest

from pllm.runtime.gate.check import Verdict, verdict_of
from pllm.runtime.gate.own_certificate import CertifiedTask, machine_check, run_against_certificate
from pllm.runtime.gate.run import GateRun, GateSettings
from pllm.runtime.gate.trio import Trio
from pllm.runtime.gate.turns import Took
from pllm.runtime.latencies import Latency

from .test_report import FACTS
from .trios import FakeMachine

ROW = Latency(num_seqs=1, num_tokens=1, context=128, ms=10.0)


def run(machine: FakeMachine) -> GateRun:
    def measure(number: int, names: Collection[str]) -> Trio:
        assert set(names) == {"decode, 1 sequence"}
        return machine.measure(number, names)

    settings = GateSettings(seconds=1e9)
    return run_against_certificate(measure, [CertifiedTask(ROW)], settings, lambda _: None)


def steady(factor: float, noise: float = 0.005) -> FakeMachine:
    """Processes that all take 10 ms times a factor; without the drift, which a certificate could not know of."""
    return FakeMachine(noise=noise, drift=0.0, level=factor)


def test_as_fast_as_built() -> None:
    found = run(steady(1.0))
    assert verdict_of(found.checks()) is Verdict.PASS
    assert found.comparisons[0].base == pytest.approx(0.01, rel=0.1)


def test_slower_than_built() -> None:
    assert verdict_of(run(steady(1.4)).checks()) is Verdict.REGRESSION


def test_what_one_process_may_see_by_chance_alarms_nobody() -> None:
    """Processes differ by a few percent, and the certificate's may have been a lucky one."""
    found = run(steady(1.04, noise=0.02))
    assert found.comparisons[0].threshold > 0.05
    assert verdict_of(found.checks()) is Verdict.PASS


def test_the_median_of_five_with_their_waits() -> None:
    task = CertifiedTask(ROW)
    took = Took(seconds=[5.0, 1.0, 2.0, 9.0, 3.0], waits=[4.0, 0.0, 0.0, 8.0, 0.0])
    assert task.costs([took]) == {task.quantity: 3.0}
    assert task.turn.least == 5


@pytest.mark.parametrize(
    ("calibration", "cpu", "verdict", "word"),
    [
        (0.001, "this one", Verdict.PASS, "kernel"),
        (0.00098, "this one", Verdict.PASS, "kernel"),
        (0.00094, "this one", Verdict.VOID, "another speed"),
        (0.001, "another", Verdict.VOID, "two machines"),
        (None, "", Verdict.VOID, "build the artifact again"),
    ],
)
def test_times_of_another_machine_are_not_compared(
    calibration: float | None, cpu: str, verdict: Verdict, word: str
) -> None:
    facts = msgspec.structs.replace(FACTS, calibration=calibration, cpu=cpu)
    check = machine_check(facts, "this one", 0.001)
    assert check.verdict is verdict
    assert word in check.reason

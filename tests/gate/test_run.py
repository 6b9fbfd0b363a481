"""What the gate decides: over trios whose truth is known."""

import pytest

from pllm.runtime.gate.check import Check, Verdict, verdict_of
from pllm.runtime.gate.run import QUORUM, VOTERS, GateRun, GateSettings, Vote

from .trios import DECODE, PREFILL, FakeMachine


def run(machine: FakeMachine, seconds: float = 300.0) -> GateRun:
    return GateRun.of(machine.measure, [DECODE, PREFILL], GateSettings(seconds=seconds), clock=machine.clock)


def verdicts(found: GateRun) -> dict[str, Verdict]:
    return {check.name: check.verdict for check in found.checks()}


@pytest.mark.parametrize("seed", range(20))
def test_the_same_thing_twice_is_no_regression(seed: int) -> None:
    assert verdict_of(run(FakeMachine(seed=seed)).checks()) is Verdict.PASS


@pytest.mark.parametrize("seed", range(20))
def test_five_percent_are_found_and_nothing_else_is_blamed(seed: int) -> None:
    found = run(FakeMachine({"decode": 1.05}, seed=seed))
    told = verdicts(found)
    assert told["decode"] is Verdict.REGRESSION
    assert told["prefill"] is Verdict.PASS
    assert found.votes["decode"].num_agreed >= QUORUM


def test_faster_is_fine() -> None:
    found = run(FakeMachine({"decode": 0.8}))
    assert verdict_of(found.checks()) is Verdict.PASS
    assert found.comparisons[0].ratio.high < 0.85


def test_what_is_settled_is_not_measured_on() -> None:
    machine = FakeMachine(noise=0.01, noises={"prefill": 0.002})
    found = run(machine)
    least = GateSettings().least
    assert all(set(names) == {"decode", "prefill"} for names in machine.wanted[:least])
    assert machine.wanted[least:]
    assert all(names == ("decode",) for names in machine.wanted[least:])
    assert verdict_of(found.checks()) is Verdict.PASS


def test_a_restless_machine_is_void_and_never_a_pass() -> None:
    found = run(FakeMachine(noise=0.2), seconds=60)
    assert verdicts(found)["decode"] is Verdict.VOID
    assert verdict_of(found.checks()) is Verdict.VOID
    assert found.seconds <= 65


def test_a_large_regression_is_seen_on_a_restless_machine_too() -> None:
    found = run(FakeMachine({"decode": 3.0}, noise=0.05), seconds=60)
    assert verdicts(found)["decode"] is Verdict.REGRESSION


def test_trios_at_another_speed_of_the_machine_do_not_count() -> None:
    found = run(FakeMachine(speeds=(1.0, 1.0, 1.0, 1.2)))
    assert found.num_drifted == (len(found.trios) + found.num_drifted) // 4
    assert verdict_of(found.checks()) is Verdict.PASS


def test_a_machine_that_is_never_the_same_is_void() -> None:
    found = run(FakeMachine(speeds=(1.0, 1.1, 1.21, 1.33, 1.46, 1.61, 1.77)), seconds=100)
    assert verdicts(found)["machine"] is Verdict.VOID


def test_no_time_at_all_is_void() -> None:
    assert verdict_of(run(FakeMachine(), seconds=0).checks()) is Verdict.VOID


def test_threads_that_stand_in_the_way_are_not_taken_for_a_neighbour() -> None:
    assert verdicts(run(FakeMachine(waits=(0.3, 0.3, 0.35))))["waiting"] is Verdict.PASS
    assert verdicts(run(FakeMachine(waits=(0.01, 0.01, 0.4))))["waiting"] is Verdict.VOID


@pytest.mark.parametrize(
    ("ratios", "verdict"),
    [
        ([], Verdict.VOID),
        ([1.1, 1.1], Verdict.VOID),
        ([1.1, 1.1, 1.1], Verdict.REGRESSION),
        ([1.1, 1.0, 1.1], Verdict.VOID),
        ([1.1, 1.0, 1.1, 1.1], Verdict.REGRESSION),
        ([1.0, 1.0], Verdict.PASS),
        ([1.1, 1.0, 1.1, 1.0], Verdict.PASS),
    ],
)
def test_a_quorum_is_three_of_four(ratios: list[float], verdict: Verdict) -> None:
    assert (QUORUM, VOTERS) == (3, 4)
    assert Vote(tuple(ratios), bound=1.02).verdict is verdict


def test_a_suspicion_that_fresh_trios_do_not_share_is_dropped() -> None:
    """The first trios are unlucky for the new side, as a process's place in memory may be; later ones are not."""
    machine = FakeMachine({"decode": 1.05}, noise=0.002)
    measured = machine.measure

    def measure(number: int, names: object) -> object:
        if number >= GateSettings().least:
            machine.factors = {}
        return measured(number, names)  # type: ignore[arg-type]

    machine.measure = measure  # type: ignore[assignment, method-assign]
    found = run(machine)
    assert found.votes["decode"].verdict is Verdict.PASS
    assert "0 of 2 fresh runs agree" in found.checks()[0].reason
    assert verdicts(found)["decode"] is Verdict.PASS


@pytest.mark.parametrize(
    ("verdicts", "whole"),
    [
        ((), Verdict.VOID),
        ((Verdict.PASS, Verdict.PASS), Verdict.PASS),
        ((Verdict.PASS, Verdict.VOID), Verdict.VOID),
        ((Verdict.VOID, Verdict.REGRESSION, Verdict.PASS), Verdict.REGRESSION),
    ],
)
def test_the_worst_decides(verdicts: tuple[Verdict, ...], whole: Verdict) -> None:
    assert verdict_of(Check("x", 1, 1, each) for each in verdicts) is whole


def test_exit_codes() -> None:
    assert [verdict.exit_code for verdict in Verdict] == [0, 5, 3]

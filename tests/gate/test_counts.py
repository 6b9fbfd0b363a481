"""Counts are compared exactly; pins say what they are known to be."""

from pathlib import Path

import pytest

from pllm.runtime.errors import UserInputError
from pllm.runtime.gate.call_counter import count_calls, counted_calls
from pllm.runtime.gate.check import Verdict, verdict_of
from pllm.runtime.gate.counts import check_counts
from pllm.runtime.gate.pins import ANY, Pins, check_pins
from pllm.runtime.step import ScheduledRow
from tests.engine.fake_model import Run

BASE: dict[str, int | str] = {
    "kernels a run, main": 48,
    "kernels a run, main: packed_linear": 21,
    "Python calls, 16 steps of 1 sequence": 1249,
    "golden tokens": "c9cff5a12aa072f6",
    "modules of pllm, engine": "pllm pllm.runtime",
    "allocations, 16 steps of 1 sequence": 16520,
}
HERE = {
    "python": "3.11",
    "numpy": "2.4",
    "torch": "2.13.0",
    "transformers": "5.24.0",
    "g++": "12.2.0",
    "vectors": "avx2",
}


def changed(begin: str, count: int | str | None) -> dict[str, int | str]:
    """BASE with the one count whose name begins so, changed or left out."""
    (name,) = [each for each in BASE if each.startswith(begin)]
    return {**BASE, name: count} if count is not None else {each: BASE[each] for each in BASE if each != name}


def test_the_same_counts_pass() -> None:
    checks = check_counts(BASE, dict(BASE))
    assert [check.name for check in checks] == list(BASE)
    assert verdict_of(checks) is Verdict.PASS


@pytest.mark.parametrize(
    ("new", "reason"),
    [
        (changed("Python", 1250), "+1"),
        (changed("allocations", 16536), "+16"),
        (changed("golden", "0" * 16), "not the same"),
        (changed("modules", "pllm pllm.runtime wave"), "new: wave"),
        (changed("modules", "pllm wave"), "new: wave; gone: pllm.runtime"),
        (BASE | {"kernels a run, main: clone": 1}, "+1"),
    ],
)
def test_more_is_a_regression(new: dict[str, int | str], reason: str) -> None:
    (check,) = [check for check in check_counts(BASE, new) if check.verdict is not Verdict.PASS]
    assert (check.verdict, check.reason) == (Verdict.REGRESSION, reason)


@pytest.mark.parametrize(
    "new", [changed("Python", 1), changed("modules", "pllm"), changed("kernels a run, main: packed", None)]
)
def test_fewer_is_none(new: dict[str, int | str]) -> None:

    assert verdict_of(check_counts(BASE, new)) is Verdict.PASS


def test_what_one_side_does_not_count() -> None:
    assert verdict_of(check_counts(BASE, changed("Python", None))) is Verdict.VOID
    assert verdict_of(check_counts(changed("Python", None), BASE)) is Verdict.PASS
    assert check_counts({}, BASE) == []


def test_a_list_is_shown_by_its_length() -> None:
    (check,) = [each for each in check_counts(BASE, changed("modules", "pllm")) if each.name.startswith("modules")]
    assert (check.base, check.new) == (2, 1)


def test_pins_are_exact_both_ways(tmp_path: Path) -> None:
    path = tmp_path / "cpu.toml"
    path.write_text(Pins({}).with_counts(BASE, HERE).text(), encoding="utf-8")
    pins = Pins.read(path)
    checks, missing = check_pins(pins, BASE, HERE)
    assert (len(checks), verdict_of(checks), missing) == (len(BASE), Verdict.PASS, [])
    for new in (changed("Python", 1248), changed("Python", 1250), changed("modules", "pllm"), changed("golden", None)):
        (check,) = [each for each in check_pins(pins, new, HERE)[0] if each.verdict is not Verdict.PASS]
        assert check.verdict is Verdict.REGRESSION
    (check,) = [each for each in check_pins(pins, BASE | {"new": 1}, HERE)[0] if each.verdict is not Verdict.PASS]
    assert check.reason == "not pinned"


def test_pins_of_other_versions_stay_and_are_not_compared(tmp_path: Path) -> None:
    pins = Pins({}).with_counts(BASE, HERE)
    there = HERE | {"python": "3.12", "torch": "2.11.0"}
    other = changed("allocations", 16152)
    checks, missing = check_pins(pins, other, there)
    assert verdict_of(checks) is Verdict.PASS
    assert missing == ["torch 2.11.0, transformers 5.24.0", "python 3.12, numpy 2.4, torch 2.11.0"]
    both = pins.with_counts(other, there)
    for counts, versions in ((BASE, HERE), (other, there)):
        checks, missing = check_pins(both, counts, versions)
        assert (verdict_of(checks), missing) == (Verdict.PASS, [])
    assert next(iter(both.sections)) == next(iter(pins.sections)) == "torch 2.13.0, transformers 5.24.0"
    assert both.text().index(ANY) < both.text().index("torch 2.11.0")


def test_the_file_of_pins_is_the_same_bytes_and_malformed_ones_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "cpu.toml"
    text = Pins({}).with_counts(BASE, HERE).text()
    path.write_text(text, encoding="utf-8")
    assert Pins.read(path).text() == text
    assert '    "pllm.runtime",\n' in text
    path.write_text("[any versions]", encoding="utf-8")
    with pytest.raises(UserInputError, match="malformed"):
        Pins.read(path)
    assert Pins.read(tmp_path / "none.toml").sections == {}


def test_calls_of_pllm_are_counted_and_those_of_others_are_not() -> None:
    def work() -> None:
        ScheduledRow(0, 0, [1], [0], ())  # its constructor is a function that dataclass wrote
        sorted([3, 1], key=lambda each: -each)

    counted = count_calls(work)
    assert (counted.python, counted.native) == (1, 0)


def test_a_step_costs_the_same_calls_each_time_it_is_run() -> None:
    def steps() -> Run:
        run = Run()
        run.add("a", [1, 2, 3])
        return run

    found = {count_calls(steps().step) for _ in range(3)}
    assert len(found) == 1
    (calls,) = found
    assert calls.python > 10
    assert calls.native > 10


def test_methods_are_counted_while_the_block_runs() -> None:
    class Door:
        def through(self, what: int) -> int:
            return what + 1

    with counted_calls(Door, "through") as called:
        assert Door().through(1) == 2
        Door().through(what=2)
    Door().through(3)
    assert called == ["through", "through"]

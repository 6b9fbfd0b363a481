import pytest

from pllm.runtime.bench.timing import RequestTiming, ServiceTargets, distributions, goodput
from pllm.runtime.errors import UserInputError

# Sent at 10; three chunks, the last of which carries two tokens.
REQUEST = RequestTiming(10.0, (10.5, 10.75, 11.25), 4)
SINGLE = RequestTiming(20.0, (20.125,), 1)


def test_the_definitions() -> None:
    assert (REQUEST.ttft, REQUEST.latency, REQUEST.tpot, REQUEST.itl) == (0.5, 1.25, 0.25, (0.25, 0.5))


def test_a_single_token_has_no_time_after_it() -> None:
    assert (SINGLE.ttft, SINGLE.latency, SINGLE.tpot, SINGLE.itl) == (0.125, 0.125, None, ())
    found = distributions([SINGLE])
    assert (found["tpot"], found["itl"]) == (None, None)
    pooled = distributions([REQUEST, SINGLE])
    assert {name: values and len(values.samples) for name, values in pooled.items()} == {
        "ttft": 2,
        "tpot": 1,
        "itl": 2,
        "e2el": 2,
    }


def test_goodput_counts_who_met_every_target() -> None:
    timings = [REQUEST, SINGLE]
    assert goodput(timings, ServiceTargets(), 4.0) == 0.5
    assert goodput(timings, ServiceTargets.parse(["ttft:500"]), 4.0) == 0.5  # a target that is just met is met
    assert goodput(timings, ServiceTargets.parse(["ttft:499"]), 4.0) == 0.25
    assert goodput(timings, ServiceTargets.parse(["ttft:500", "tpot:249"]), 4.0) == 0.25
    assert goodput(timings, ServiceTargets.parse(["e2el:100"]), 4.0) == 0.0


@pytest.mark.parametrize(
    "words", [["ttft"], ["ttft:"], ["itl:5"], ["tpot:-1"], ["tpot:nan"], ["tpot:inf"], ["ttft:1", "ttft:2"], [""]]
)
def test_targets_that_mean_nothing_are_refused(words: list[str]) -> None:
    with pytest.raises(UserInputError, match="ttft, tpot, e2el"):
        ServiceTargets.parse(words)

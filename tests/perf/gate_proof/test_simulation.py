"""The gate over trios recorded on a busy machine of two cores: a few of the runs that ``simulate`` does by hundreds."""

from pathlib import Path

import pytest

from pllm.runtime.gate.check import Verdict
from pllm.runtime.gate.run import GateSettings

from .recording import read
from .simulation import quantities_of, simulate
from .slow_worker import SLOWDOWN

RECORDING = read(Path(__file__).parents[1] / "results" / "2026-11-25-gate-trios.jsonl")
QUANTITIES = quantities_of(RECORDING.facts)
SETTINGS = GateSettings(seconds=420.0)


@pytest.mark.parametrize("seed", range(8))
def test_no_alarm_where_nothing_differs(seed: int) -> None:
    outcome = simulate(RECORDING, QUANTITIES, SETTINGS, factors={}, seed=seed)
    assert (outcome.verdict, outcome.blamed) == (Verdict.PASS, ())


@pytest.mark.parametrize("seed", range(4))
def test_slower_decoding_is_found(seed: int) -> None:
    decode = {name: 1 + SLOWDOWN for name in RECORDING.trios[0].costs if name.startswith("decode")}
    outcome = simulate(RECORDING, QUANTITIES, SETTINGS, factors=decode, seed=seed)
    assert outcome.verdict is Verdict.REGRESSION
    assert set(outcome.blamed) <= set(decode)


@pytest.mark.parametrize("name", ["prefill, 128 tokens", "TPOT, W1", "peak memory", "start to ready"])
def test_each_is_found_by_itself(name: str) -> None:
    outcome = simulate(RECORDING, QUANTITIES, SETTINGS, factors={name: 1.15}, seed=0)
    assert outcome.blamed == (name,)


def test_the_recording_has_every_quantity() -> None:
    assert set(RECORDING.trios[0].costs) == {quantity.name for quantity in QUANTITIES}
    assert set(RECORDING.births[0].costs) == {"start to ready", "start to first token", "peak memory"}
    assert len(RECORDING.trios) > 100
    assert len(RECORDING.births) > 400

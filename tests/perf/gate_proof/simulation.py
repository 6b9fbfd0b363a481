"""The gate's decisions over recorded trios: whose costs are real, and which of the three was which is drawn anew.

All three processes of a recorded trio ran the same program, so base, double and new are names; drawing them at random
for each trio gives as many runs of a thing against itself as one likes, each with the real noise, in its real order,
from a random place of the recording on. A slowdown is a factor on the new side's costs.
"""

import random
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from pllm.runtime.gate.check import Verdict, verdict_of
from pllm.runtime.gate.facts import Facts
from pllm.runtime.gate.quantity import FIRST_TOKEN, PEAK_MEMORY, READY, Quantity, tasks_for
from pllm.runtime.gate.run import GateRun, GateSettings
from pllm.runtime.gate.trio import Trio

from .recording import Recording

__all__ = ["Outcome", "quantities_of", "simulate"]


@dataclass(frozen=True, slots=True)
class Outcome:
    """Of one simulated run: its verdict, what it blamed, what it suspected and the votes did not confirm, and what it
    could not say; ``seconds`` as if it were real."""

    verdict: Verdict
    blamed: tuple[str, ...]
    cleared: tuple[str, ...]
    void: tuple[str, ...]
    seconds: float
    num_trios: int


def quantities_of(facts: Facts) -> list[Quantity]:
    """Those that the gate would time, in its order."""
    timed = [quantity for task in tasks_for(facts.rows, facts.max_model_len) for quantity in task.quantities]
    return [*timed, READY, FIRST_TOKEN, PEAK_MEMORY]


def simulate(
    recording: Recording,
    quantities: Sequence[Quantity],
    settings: GateSettings,
    *,
    factors: Mapping[str, float],
    seed: int,
) -> Outcome:
    """One run. Where nothing but births is wanted, trios of births are drawn. Each trio is taken to last as long as it
    did, though a real one leaves out tasks that are settled."""
    rng = random.Random(seed)
    births = set(recording.births[0].costs)
    places = {is_birth: rng.randrange(len(recording.trios)) for is_birth in (False, True)}
    now = 0.0

    def measure(_: int, names: Collection[str]) -> Trio:
        nonlocal now
        is_birth = births.issuperset(names)
        kind = recording.births if is_birth else recording.trios
        trio = kind[places[is_birth] % len(kind)]
        places[is_birth] += 1
        now += trio.seconds
        roles = rng.sample(range(3), 3)
        costs = {}
        for name in names:
            base, double, new = (trio.costs[name][role] for role in roles)
            costs[name] = (base, double, new * factors.get(name, 1.0))
        waits = trio.waits[roles[0]], trio.waits[roles[1]], trio.waits[roles[2]]
        return Trio(costs, trio.calibrations, waits, trio.seconds)

    run = GateRun.of(measure, quantities, settings, clock=lambda: now)
    checks = run.checks()
    return Outcome(
        verdict_of(checks),
        tuple(check.name for check in checks if check.verdict is Verdict.REGRESSION),
        tuple(name for name, vote in run.votes.items() if vote.verdict is Verdict.PASS),
        tuple(check.name for check in checks if check.verdict is Verdict.VOID),
        now,
        len(run.trios),
    )

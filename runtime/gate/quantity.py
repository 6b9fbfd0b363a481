"""What the gate compares, and what a worker must do to learn it.

Every sample is a cost, in seconds or bytes: less is better. How it is shown, as a rate for instance, is the quantity's.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from pllm.runtime.bench.workload import WORKLOADS
from pllm.runtime.gate.quiet import quiet_duration
from pllm.runtime.gate.turns import PassTurn, StepTurn, Took
from pllm.runtime.latencies import Latency

__all__ = [
    "FIRST_TOKEN",
    "LEAST_BOUND",
    "PASS_TOKENS",
    "PEAK_MEMORY",
    "PRECISION",
    "READY",
    "PassTask",
    "Quantity",
    "StepTask",
    "name_of",
    "tasks_for",
]

LEAST_BOUND = 0.02
PRECISION = 0.01
"""Half the width of the intervals, as a share, at which enough is known."""
PASS_TOKENS = 160
"""Of a request of W1 and W2, prompt and answer."""


@dataclass(frozen=True, slots=True)
class Quantity:
    """``bound``: the share of the base by which the new side may cost more at least, before anybody is alarmed.

    A cost is shown times ``scale`` in ``unit``; as a rate, ``scale`` over the cost.
    """

    name: str
    unit: str
    scale: float
    is_rate: bool = False
    bound: float = LEAST_BOUND

    def shown(self, cost: float) -> float:
        """The cost as people read it, in ``unit``."""
        return self.scale / cost if self.is_rate else self.scale * cost


_TURN = 0.008  # seconds of quiet steps: enough to meet moments in which neighbours leave caches alone
_SMALL = 128  # tokens of a step that is measured in every round
_LONG_MS = 20.0  # of the certificate: a step that is not
_SELDOM = 3

# One sample a process: they take most trios to settle, and those in which nothing else is open are short.
READY = Quantity("start to ready", "ms", 1e3)
FIRST_TOKEN = Quantity("start to first token", "ms", 1e3)
PEAK_MEMORY = Quantity("peak memory", "MiB", 1 / (1 << 20))


@dataclass(frozen=True, slots=True)
class StepTask:
    """One row of a latency table: a step of the model, and nothing around it. ``every`` so many rounds there is a turn:
    what takes long differs from process to process more than from turn to turn."""

    quantity: Quantity
    turn: StepTurn
    every: int = 1

    @property
    def quantities(self) -> tuple[Quantity, ...]:
        return (self.quantity,)

    def costs(self, answers: Sequence[Took]) -> dict[Quantity, float]:
        """Of one side's answers: the step's quiet duration."""
        seconds = [each for took in answers for each in took.seconds]
        waits = [each for took in answers for each in took.waits]
        return {self.quantity: quiet_duration(seconds, waits)}


@dataclass(frozen=True, slots=True)
class PassTask:
    """A workload whose requests all run at once, through the engine.

    Passes are alike step by step, so each step's cost is its quiet duration over the passes, and a pass's cost is their
    sum: no pass needs to be undisturbed as a whole.
    """

    turn: PassTurn
    num_output_tokens: int
    ttft: Quantity | None = None
    tpot: Quantity | None = None
    throughput: Quantity | None = None
    every: int = 1

    @property
    def quantities(self) -> tuple[Quantity, ...]:
        return tuple(each for each in (self.ttft, self.tpot, self.throughput) if each is not None)

    def costs(self, answers: Sequence[Took]) -> dict[Quantity, float]:
        """Of one side's answers. ``ttft``: the steps until the first token. ``tpot``: the others, over as many tokens.
        ``throughput``: all of them."""
        length = min(len(took.seconds) for took in answers)
        steps = [
            quiet_duration([took.seconds[i] for took in answers], [took.waits[i] for took in answers])
            for i in range(length)
        ]
        first = sum(steps[: answers[0].num_first])
        whole = sum(steps)
        later = (whole - first) / (self.num_output_tokens - 1)
        found = ((self.ttft, first), (self.tpot, later), (self.throughput, whole))
        return {quantity: cost for quantity, cost in found if quantity is not None}


def tasks_for(rows: Sequence[Latency], max_model_len: int) -> tuple[StepTask | PassTask, ...]:
    """A task for each row of a latency table, then one request (W1) and eight at once (W2) through the engine, where
    sequences may be as long as theirs."""
    return (*map(_step, rows), *(_passes() if max_model_len >= PASS_TOKENS else ()))


def name_of(row: Latency) -> str:
    """What a row of the latency table times."""
    if row.num_seqs == row.num_tokens and row.context > 1:
        return f"decode, {row.num_seqs} sequence{'s' if row.num_seqs > 1 else ''}"
    return f"prefill, {row.num_tokens} tokens"


def _step(row: Latency) -> StepTask:
    name = name_of(row)
    turn = StepTurn(num_seqs=row.num_seqs, num_tokens=row.num_tokens, context=row.context, seconds=_TURN)
    if row.num_tokens > _SMALL or row.ms > _LONG_MS:
        return StepTask(Quantity(name, "ms", 1e3), turn, _SELDOM)
    return StepTask(Quantity(name, "ms", 1e3), turn)


def _passes() -> tuple[PassTask, ...]:
    one, eight = (sum(each.num_output_tokens for each in WORKLOADS[name]().requests) for name in ("W1", "W2"))
    return (
        PassTask(
            PassTurn(workload="W1"),
            one,
            ttft=Quantity("TTFT, W1", "ms", 1e3),
            tpot=Quantity("TPOT, W1", "ms", 1e3),
        ),
        PassTask(
            PassTurn(workload="W2"),
            eight,
            throughput=Quantity("throughput, W2", "tokens/s", float(eight), is_rate=True),
            every=_SELDOM,
        ),
    )

"""Trios that nobody measured: costs with noise of a given kind, for the gate's decisions."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from pllm.runtime.gate.quantity import Quantity
from pllm.runtime.gate.trio import Costs, Trio

DECODE = Quantity("decode", "ms", 1e3)
PREFILL = Quantity("prefill", "ms", 1e3)


@dataclass
class FakeMachine:
    """Costs of one second and ten milliseconds, times a noise with heavy tails (Student's t, three degrees of freedom)
    and a drift that all sides of a trio share; all of it times ``level``. ``factors``: what the new side's costs are
    multiplied with."""

    factors: Mapping[str, float] = field(default_factory=dict)
    noise: float = 0.01
    noises: Mapping[str, float] = field(default_factory=dict)
    drift: float = 0.05
    level: float = 1.0
    seed: int = 0
    speeds: Sequence[float] = (1.0,)
    seconds_a_trio: float = 5.0
    waits: Costs = (0.01, 0.01, 0.01)
    now: float = 0.0
    wanted: list[tuple[str, ...]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._rng = np.random.default_rng(self.seed)
        self._drift = 0.0

    def clock(self) -> float:
        return self.now

    def measure(self, number: int, names: Collection[str]) -> Trio:
        self.now += self.seconds_a_trio
        self.wanted.append(tuple(names))
        self._drift += self.drift * self._rng.standard_normal()
        costs = {}
        for name in names:
            noise = self.noises.get(name, self.noise) * self._rng.standard_t(3, 3)
            base, double, new = (
                self.level * (1.0 if name == "decode" else 0.01) * np.exp(self._drift + noise)
            ).tolist()
            costs[name] = (base, double, new * self.factors.get(name, 1.0))
        speed = self.speeds[number % len(self.speeds)]
        return Trio(costs, (0.001 * speed, 0.0012 * speed), self.waits, self.seconds_a_trio)

"""The latency table of the certificate beside this machine now, with what the calibration kernel says of both."""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

from pllm.runtime.artifact import Artifact
from pllm.runtime.certificate import measure_step
from pllm.runtime.engine_core import EngineCore
from pllm.runtime.errors import MeasurementError
from pllm.runtime.gate.calibration import Calibration, drift
from pllm.runtime.latencies import Latencies, Latency
from pllm.runtime.machine import cpu_name

__all__ = ["PerfCheck", "StepPair", "check_perf"]

_PASSES = 3
_MOST_DRIFT = 0.05


@dataclass(frozen=True, slots=True)
class StepPair:
    """One row of the table, and its step's milliseconds here: the median of a few passes over the whole table."""

    row: Latency
    ms: float

    @property
    def ratio(self) -> float:
        return self.ms / self.row.ms


@dataclass(frozen=True, slots=True)
class PerfCheck:
    """``speed``: how much longer the calibration kernel takes here than it took beside the table; None where the build
    did not say. ``cpu`` is this machine's, ``built_on`` the build's, empty where it is not known."""

    pairs: tuple[StepPair, ...]
    speed: float | None
    cpu: str
    built_on: str

    @property
    def ratio(self) -> float:
        """The median over the table's rows."""
        return median(pair.ratio for pair in self.pairs)

    @property
    def calibrated_ratio(self) -> float | None:
        """The same, over what the calibration kernel says of the cores' speed. Memory's speed is not in it."""
        return None if self.speed is None else self.ratio / self.speed


def check_perf(artifact: Artifact) -> PerfCheck:
    """Measure every row that fits. Raises as `EngineCore.open`; MeasurementError where the machine changed its speed by
    more than 5% meanwhile, or where no row fits its limits here."""
    latencies = Latencies.read(artifact.path(artifact.manifest.latency))
    core = EngineCore.open(artifact.directory, enable_prefix_caching=False)
    try:
        core.wait_settled()
        config, kernel = core.engine.config, Calibration()
        rows = [
            row
            for row in latencies.rows
            if row.num_seqs <= config.max_num_seqs
            and row.num_tokens <= config.max_num_batched_tokens
            and row.context <= config.max_model_len
        ]
        if not rows:
            raise MeasurementError(f"nothing was measured: no row of {artifact.manifest.latency} fits this engine")
        calibrations, passes = [kernel.seconds()], []
        for _ in range(_PASSES):
            passes.append(
                [measure_step(core.model_runner, config, row.num_seqs, row.num_tokens, row.context) for row in rows]
            )
            calibrations.append(kernel.seconds())
    finally:
        core.close()
    _refuse_drift(calibrations)
    pairs = tuple(StepPair(row, median(each)) for row, each in zip(rows, zip(*passes, strict=True), strict=True))
    speed = None if latencies.calibration is None else min(calibrations) / latencies.calibration
    return PerfCheck(pairs, speed, cpu_name(), latencies.cpu)


def _refuse_drift(calibrations: Sequence[float]) -> None:
    """Raises MeasurementError for a machine whose speed changed under the measurement."""
    half = len(calibrations) // 2
    apart = drift(calibrations[:half], min(calibrations[half:]))
    if apart > _MOST_DRIFT:
        raise MeasurementError(
            f"the measurement is void: the machine's own speed changed by {apart:.0%} meanwhile (bound "
            f"{_MOST_DRIFT:.0%}); try again when less else runs"
        )

"""``pllm bench latency``: how long one batch takes, in this process, from token ids to token ids."""

from dataclasses import asdict, dataclass
from pathlib import Path

from pllm.runtime.bench.distribution import Distribution
from pllm.runtime.bench.engine_options import EngineOptions
from pllm.runtime.bench.engine_run import EngineRun
from pllm.runtime.bench.facts import MachineFacts, artifact_facts
from pllm.runtime.bench.processes import ProcessMemory
from pllm.runtime.bench.report import QUARTILES, Report, Row, quantile_table, say
from pllm.runtime.bench.timing import distributions
from pllm.runtime.bench.workload import Workload

__all__ = ["LatencyOptions", "measure_latency"]


@dataclass(frozen=True, slots=True, kw_only=True)
class LatencyOptions:
    """``batch`` equal requests at once, each ``input_len`` tokens in and ``output_len`` out; ``reps`` passes are
    measured after ``warmup`` that are not."""

    batch: int = 1
    input_len: int = 128
    output_len: int = 32
    reps: int = 10
    warmup: int = 1


def measure_latency(artifact: Path, options: LatencyOptions, engine: EngineOptions) -> Report:
    """TTFT and TPOT of every request, decode rate and latency of every pass (`timing`, `EngineRun.decode_rate`).

    Text is not made: the detokenizer is no part of it. Raises as `EngineCore.open`, UserInputError for what is longer
    than the model takes.
    """
    machine = MachineFacts.here("torch", "numpy")
    with engine.open(artifact, max_waiting=options.batch) as core:
        workload = Workload.uniform(
            options.batch,
            options.input_len,
            options.output_len,
            concurrency=options.batch,
            vocab_size=core.manifest.model.vocab_size,
        )
        workload.check(core.plan.max_model_len)
        core.wait_settled()
        say(f"{options.warmup} warm-up, then {options.reps} passes: {workload.name}")
        for _ in range(options.warmup):
            EngineRun.of(core.engine, workload)
        runs = [EngineRun.of(core.engine, workload) for _ in range(options.reps)]
        facts = artifact_facts(core.manifest)
        memory = ProcessMemory.of_this()
    times = distributions([timing for run in runs for timing in run.timings])
    decode = Distribution.of(run.decode_rate for run in runs if run.decode_rate is not None)
    makespan = Distribution.of(run.makespan for run in runs)
    rows = [
        Row("TTFT", times["ttft"], "ms", 1e3),
        Row("TPOT", times["tpot"], "ms", 1e3),
        Row("whole batch", makespan, "ms", 1e3),
        Row("decode", decode, "tokens/s"),
    ]
    return Report(
        measurement="latency",
        title=f"{facts['name']}: {workload.name}",
        subject=facts,
        options=asdict(options) | asdict(engine),
        results={
            "ttft": times["ttft"],
            "tpot": times["tpot"],
            "latency": makespan,
            "decode_tokens_per_s": decode,
            "passes": [
                {"ttft": run.timings[0].ttft, "makespan": run.makespan, "decode_tokens_per_s": run.decode_rate}
                for run in runs
            ],
            **asdict(memory),
        },
        machine=machine,
        tables=(quantile_table(rows, QUARTILES),),
    )

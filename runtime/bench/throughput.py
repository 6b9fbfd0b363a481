"""``pllm bench throughput``: how much work gets done, in this process, from token ids to token ids."""

from dataclasses import asdict, dataclass
from pathlib import Path

from pllm.runtime.bench.distribution import Distribution
from pllm.runtime.bench.engine_options import EngineOptions
from pllm.runtime.bench.engine_run import EngineRun
from pllm.runtime.bench.facts import MachineFacts, artifact_facts
from pllm.runtime.bench.processes import ProcessMemory
from pllm.runtime.bench.report import QUARTILES, Report, Row, quantile_table, say
from pllm.runtime.bench.timing import distributions
from pllm.runtime.bench.workload import WorkloadChoice, warmup

__all__ = ["ThroughputOptions", "measure_throughput"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ThroughputOptions:
    """``reps`` passes over the workload are measured, after one short request to warm up."""

    choice: WorkloadChoice
    reps: int = 3


def measure_throughput(artifact: Path, options: ThroughputOptions, engine: EngineOptions) -> Report:
    """Makespan, tokens a second, KV utilisation sampled every step, steps and preemptions.

    Output tokens a second count those that were asked for; total ones the prompts' besides. Raises as
    `measure_latency`.
    """
    machine = MachineFacts.here("torch", "numpy")
    with engine.open(artifact, max_waiting=options.choice.concurrency + 64) as core:
        workload = options.choice.make(core.manifest.model.vocab_size)
        workload.check(core.plan.max_model_len)
        core.wait_settled()
        say(f"a warm-up, then {options.reps} passes: {workload.name}")
        EngineRun.of(core.engine, warmup(core.manifest.model.vocab_size))
        runs = [EngineRun.of(core.engine, workload) for _ in range(options.reps)]
        facts = artifact_facts(core.manifest)
        memory = ProcessMemory.of_this()
    output, total = workload.num_output_tokens, workload.num_output_tokens + workload.num_prompt_tokens
    makespan = Distribution.of(run.makespan for run in runs)
    output_rate = Distribution.of(output / run.makespan for run in runs)
    total_rate = Distribution.of(total / run.makespan for run in runs)
    utilisation = Distribution.of(share for run in runs for share in run.kv_utilisation)
    times = distributions([timing for run in runs for timing in run.timings])
    rows = [
        Row("makespan", makespan, "s"),
        Row("output", output_rate, "tokens/s"),
        Row("output and prompts", total_rate, "tokens/s"),
        Row("TTFT", times["ttft"], "ms", 1e3),
        Row("TPOT", times["tpot"], "ms", 1e3),
    ]
    steps, preemptions = (sorted({getattr(run, name) for run in runs}) for name in ("num_steps", "num_preemptions"))
    notes = [f"{_span(steps)} steps a pass, {_span(preemptions)} preemptions"]
    if utilisation is not None:
        notes.insert(
            0,
            f"KV utilisation, tokens held over slots allocated: mean {utilisation.mean:.1%}, "
            f"5th percentile {utilisation.quantile(0.05):.1%} of {len(utilisation.samples)} steps",
        )
    return Report(
        measurement="throughput",
        title=f"{facts['name']}: {workload.name}, {len(workload.requests)} requests, "
        f"{workload.num_prompt_tokens} tokens in, {output} out",
        subject=facts,
        options=asdict(options.choice) | {"reps": options.reps} | asdict(engine),
        results={
            "makespan": makespan,
            "output_tokens_per_s": output_rate,
            "total_tokens_per_s": total_rate,
            "ttft": times["ttft"],
            "tpot": times["tpot"],
            "kv_utilisation": utilisation,
            "passes": [
                {"makespan": run.makespan, "steps": run.num_steps, "preemptions": run.num_preemptions} for run in runs
            ],
            **asdict(memory),
        },
        machine=machine,
        tables=(quantile_table(rows, QUARTILES),),
        notes=tuple(notes),
    )


def _span(values: list[int]) -> str:
    return str(values[0]) if len(values) == 1 else f"{values[0]} to {values[-1]}"

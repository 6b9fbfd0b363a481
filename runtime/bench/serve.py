"""``pllm bench serve``: a server as its clients see it, over HTTP and server-sent events."""

import asyncio
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import uvloop

from pllm.runtime.artifact import Artifact
from pllm.runtime.bench.completion_stream import complete, served_model
from pllm.runtime.bench.engine_options import EngineOptions
from pllm.runtime.bench.facts import MachineFacts, artifact_facts
from pllm.runtime.bench.http_client import Endpoint
from pllm.runtime.bench.load import Load, LoadRun
from pllm.runtime.bench.processes import ProcessMemory, process_tree
from pllm.runtime.bench.report import Report, Row, quantile_table, say
from pllm.runtime.bench.served_artifact import HOST, serving
from pllm.runtime.bench.timing import ServiceTargets, distributions, goodput
from pllm.runtime.bench.workload import Workload, WorkloadChoice, warmup
from pllm.runtime.errors import MeasurementError

__all__ = ["ServeOptions", "measure_artifact", "measure_server", "refuse_void"]

_PERCENTILES = {"p50": 0.5, "p90": 0.9, "p99": 0.99}
_READY_WITHIN = 600.0  # seconds for a server of our own


@dataclass(frozen=True, slots=True, kw_only=True)
class ServeOptions:
    """What is sent, when, and what counts as good."""

    choice: WorkloadChoice
    load: Load
    targets: ServiceTargets


def measure_artifact(
    artifact: Path, options: ServeOptions, engine: EngineOptions, api_key: str | None
) -> tuple[Report, LoadRun]:
    """Measure a server that is started for it on a free port of this machine, and ended afterwards."""
    machine = MachineFacts.here("torch", "numpy")
    manifest = Artifact.read(artifact).manifest
    workload = options.choice.make(manifest.model.vocab_size)
    workload.check(manifest.engine.max_model_len)
    say(f"starting a server for {artifact}")
    with serving(str(artifact), [*engine.flags(), "--max-queue", str(workload.concurrency)]) as server:
        server.wait_ready(time.monotonic() + _READY_WITHIN)
        endpoint = Endpoint(HOST, server.port, api_key)
        run = _drive(endpoint, workload, options.load, manifest.model.vocab_size)
        memory = ProcessMemory.of(*process_tree(server.pid))
    subject = artifact_facts(manifest)
    report = _report(
        run, workload, options, subject=subject, machine=machine, engine=asdict(engine), memory=asdict(memory)
    )
    return report, run


def measure_server(endpoint: Endpoint, options: ServeOptions, vocab_size: int) -> tuple[Report, LoadRun]:
    """Measure a server that runs already, whatever it is; its prefix caching is its own affair."""
    machine = MachineFacts.here()
    workload = options.choice.make(vocab_size)
    run = _drive(endpoint, workload, options.load, vocab_size)
    subject = {"name": endpoint.authority}
    return _report(run, workload, options, subject=subject, machine=machine, engine={}, memory={}), run


def refuse_void(run: LoadRun) -> None:
    """Raises MeasurementError where requests failed: what the others took says little of the load that was meant."""
    if run.failures:
        causes = Counter(run.failures).most_common(3)
        told = "; ".join(f"{count} x {cause}" for cause, count in causes)
        raise MeasurementError(f"the measurement is void: {len(run.failures)} requests failed ({told})")


def _drive(endpoint: Endpoint, workload: Workload, load: Load, vocab_size: int) -> LoadRun:
    async def main() -> LoadRun:
        model = await served_model(endpoint)
        for wanted in warmup(vocab_size).requests:
            await complete(endpoint, model, wanted)
        return await LoadRun.of(workload, load, lambda wanted: complete(endpoint, model, wanted))

    say(f"{len(workload.requests)} requests: {workload.name}")
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(main())


def _report(
    run: LoadRun,
    workload: Workload,
    options: ServeOptions,
    *,
    subject: Mapping[str, object],
    machine: MachineFacts,
    engine: dict[str, object],
    memory: dict[str, object],
) -> Report:
    times = distributions(run.timings)
    output = sum(timing.num_output_tokens for timing in run.timings)
    rates = {
        "requests_per_s": len(run.timings) / run.duration,
        "output_tokens_per_s": output / run.duration,
        "goodput_per_s": goodput(run.timings, options.targets, run.duration),
    }
    rows = [
        Row("TTFT", times["ttft"], "ms", 1e3),
        Row("TPOT", times["tpot"], "ms", 1e3),
        Row("ITL", times["itl"], "ms", 1e3),
        Row("end to end", times["e2el"], "ms", 1e3),
    ]
    rate = options.load.request_rate
    arriving = "all at once" if rate == float("inf") else f"{rate:g} a second"
    asked = {name: value for name, value in asdict(options.targets).items() if value is not None}
    kept = " and ".join(f"{name} within {1e3 * value:g} ms" for name, value in asked.items())
    outcome = (
        f"{len(run.timings)} requests succeeded and {len(run.failures)} failed in {run.duration:.2f} s: "
        f"{rates['requests_per_s']:.2f} requests/s, {rates['output_tokens_per_s']:.1f} output tokens/s"
    )
    good = f"goodput ({kept}): {rates['goodput_per_s']:.2f} requests/s"
    return Report(
        measurement="serve",
        title=f"{subject['name']}: {workload.name}, arriving {arriving}",
        subject=subject,
        options=asdict(options.choice)
        | {"request_rate": None if rate == float("inf") else rate, "seed": options.load.seed}
        | {"goodput": asked}
        | engine,
        results={
            "duration": run.duration,
            "succeeded": len(run.timings),
            "failed": len(run.failures),
            **times,
            **rates,
            **memory,
        },
        machine=machine,
        tables=(quantile_table(rows, _PERCENTILES),) if run.timings else (),
        notes=(outcome, good) if kept else (outcome,),
    )

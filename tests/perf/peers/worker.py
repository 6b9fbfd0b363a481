"""What a worker is told on its command line, and the one line of JSON that it answers with.

A worker is one engine in one process: it loads the model, runs one workload a few times, answers and ends. It needs its
engine, the standard library, and the few modules of pllm that have no dependencies.
"""

import argparse
import json
import statistics
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version

from pllm.runtime.bench.processes import ProcessMemory, process_age
from pllm.runtime.bench.workload import Workload, warmup

__all__ = ["Job", "Pass", "answer", "work"]


@dataclass(frozen=True, slots=True)
class Job:
    """One workload on one model. ``cold`` (W4): nothing is run before the first token, and nothing after it counts."""

    model: str
    workload: Workload
    vocab_size: int
    reps: int
    threads: int
    engine: str

    @property
    def cold(self) -> bool:
        return self.workload.name == "W4"

    @classmethod
    def parse(cls, engines: Sequence[str]) -> "Job":
        """The command line; ``engines`` are the ways in which this worker can run the model."""
        parser = argparse.ArgumentParser()
        parser.add_argument("model")
        parser.add_argument("workload", choices=["W1", "W2", "W3", "W4"])
        parser.add_argument("--vocab-size", type=int, required=True)
        parser.add_argument("--reps", type=int, default=1)
        parser.add_argument("--threads", type=int, default=2)
        parser.add_argument("--engine", choices=engines, default=engines[0])
        given = parser.parse_args()
        workload = Workload.named(given.workload, given.vocab_size)
        return cls(given.model, workload, given.vocab_size, given.reps, given.threads, given.engine)


@dataclass(frozen=True, slots=True)
class Pass:
    """One run of the workload. Seconds; ``first`` is from the start of the pass, None where nobody looked.

    Tokens are those that were asked for: what a static batch computes beyond them is its own affair.
    """

    first: float | None
    makespan: float
    token_ids: list[list[int]] = field(repr=False)

    def metrics(self) -> dict[str, float]:
        """What a peer reaches: by the names of `metrics.METRICS`."""
        count = sum(map(len, self.token_ids))
        if self.first is None or len(self.token_ids) > 1:
            return {"output_rate": count / self.makespan}
        return {"first_token": self.first, "decode_rate": (count - 1) / (self.makespan - self.first)}


def work(job: Job, package: str, run: Callable[[Workload], Pass]) -> None:
    """Do the job with an engine that has just been opened, from ``package``, and answer."""
    ready = process_age()
    versions = {package: version(package)}
    if job.cold:
        found = run(job.workload)
        assert found.first is not None
        first_token = process_age() - (found.makespan - found.first)
        answer([], versions, cold_ready=ready, cold_first_token=first_token)
    else:
        run(warmup(job.vocab_size))
        answer([run(job.workload) for _ in range(job.reps)], versions)


def answer(passes: Sequence[Pass], versions: dict[str, str], **more: float) -> None:
    """Write the answer: the medians of the passes, every pass, and this process's peak of memory."""
    each = [run.metrics() for run in passes]
    medians = {name: statistics.median(metrics[name] for metrics in each) for name in (each[0] if each else ())}
    document = {
        "metrics": {"peak_rss": float(ProcessMemory.of_this().peak_rss), **medians, **more},
        "passes": [[run.first, run.makespan] for run in passes],
        "token_ids": passes[-1].token_ids if passes else [],
        "versions": versions,
    }
    sys.stdout.write("\n" + json.dumps(document) + "\n")
    sys.stdout.flush()

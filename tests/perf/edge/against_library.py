"""The server beside the library, on one artifact and one workload, in turn.

    make bench-server
    make bench-server SERVER_FLAGS='--artifact artifacts/qwen3-0.6b-int8 --rounds 10'

One server and one library stay open side by side: whichever is not asked sleeps. A round is a pass of the workload on
each, in the order A B, then B A, and so on; a first round warms up and is dropped. The client is this process, on the
same cores. Then the workload runs on the server once more, while another client sends requests that are wrong and notes
how long their 400 takes. Exit code 3: others took more than a twentieth of the cores meanwhile.
"""

import argparse
import asyncio
import json
import statistics
import sys
import time
from dataclasses import asdict
from pathlib import Path

import psutil
import uvloop
from peers.disturbance import CpuAccount
from peers.ratios import Ratio
from peers.run_pllm import pool_memory

from pllm.runtime.artifact import Artifact
from pllm.runtime.bench.completion_stream import complete, served_model
from pllm.runtime.bench.engine_options import EngineOptions
from pllm.runtime.bench.engine_run import EngineRun
from pllm.runtime.bench.facts import MachineFacts, artifact_facts
from pllm.runtime.bench.http_client import Endpoint
from pllm.runtime.bench.load import Load, LoadRun
from pllm.runtime.bench.processes import process_tree
from pllm.runtime.bench.served_artifact import HOST, serving
from pllm.runtime.bench.workload import Workload

from .mistakes import send_mistakes, share_of

ALONE = 0.05  # of the cores, for everybody else
_READY_WITHIN = 600.0  # seconds


class ServerSide:
    """The running server, and its client."""

    def __init__(self, port: int, pid: int, workload: Workload) -> None:
        self._endpoint = Endpoint(HOST, port)
        self._port = port
        self._workload = workload
        self.processes = [psutil.Process(number) for number in process_tree(pid)]

    def rate(self, mistakes: list[float] | None = None) -> float:
        """Output tokens a second of one pass. ``mistakes``: ask for errors meanwhile, and keep how long they took."""
        return uvloop.run(self._rate(mistakes))

    async def _rate(self, mistakes: list[float] | None) -> float:
        model = await served_model(self._endpoint)
        other = None if mistakes is None else asyncio.ensure_future(send_mistakes(self._port, mistakes))
        run = await LoadRun.of(self._workload, Load(), lambda wanted: complete(self._endpoint, model, wanted))
        if other is not None:
            other.cancel()
        if run.failures:
            raise SystemExit(f"requests failed: {run.failures[0]}")
        return self._workload.num_output_tokens / run.duration


class Company:
    """The share of the cores that others took since the beginning."""

    def __init__(self, server: list[psutil.Process]) -> None:
        self._ours = [psutil.Process(), *server]
        self._before, self._used = CpuAccount.now(), self._seconds()

    def share(self) -> float:
        now = CpuAccount.now()
        others = (now.busy - self._before.busy) - (self._seconds() - self._used)
        return min(1.0, max(0.0, others / ((now.when - self._before.when) * now.cores)))

    def _seconds(self) -> float:
        return sum(sum(process.cpu_times()[:2]) for process in self._ours)


def main() -> int:
    parser = argparse.ArgumentParser(prog="bench-server", description=__doc__.splitlines()[0])
    parser.add_argument("--artifact", type=Path, required=True)
    parser.add_argument("--workload", choices=["W1", "W2", "W3"], default="W3")
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--threads", type=int, help="of each engine (default: the cores)")
    parser.add_argument("--json", metavar="FILE", type=Path)
    args = parser.parse_args()
    manifest = Artifact.read(args.artifact).manifest
    workload = Workload.named(args.workload, manifest.model.vocab_size)
    # No larger than the workload needs: two engines share this machine's memory.
    seqs = min(workload.concurrency, manifest.engine.max_num_seqs)
    memory = pool_memory(manifest, workload.concurrency)
    engine = EngineOptions(threads=args.threads, max_num_seqs=seqs, memory=f"{memory} B")
    flags = [*engine.flags(), "--max-queue", str(workload.concurrency)]
    rates: dict[str, list[float]] = {"server": [], "library": []}
    waits: list[float] = []
    with (
        serving(str(args.artifact), flags) as served,
        engine.open(args.artifact, max_waiting=workload.concurrency + 64) as core,
    ):
        served.wait_ready(time.monotonic() + _READY_WITHIN)
        core.wait_settled()
        server = ServerSide(served.port, served.pid, workload)
        sides = {
            "server": server.rate,
            "library": lambda: workload.num_output_tokens / EngineRun.of(core.engine, workload).makespan,
        }
        for side in sides.values():
            side()
        company = Company(server.processes)
        for number in range(args.rounds):
            for name in ("server", "library") if number % 2 == 0 else ("library", "server"):
                rates[name].append(sides[name]())
                print(f"round {number + 1} of {args.rounds}, {name}: {rates[name][-1]:.1f} tokens/s", file=sys.stderr)
        others = company.share()
        loaded = server.rate(waits)
    ratio = Ratio.of(rates["server"], rates["library"], higher_is_better=True)
    machine = MachineFacts.here("torch", "numpy")
    facts = artifact_facts(manifest)
    medians = {name: statistics.median(each) for name, each in rates.items()}
    p50, p99, longest = (1e3 * share_of(waits, percent) for percent in (50, 99, 100))
    print(
        f"{facts['name']}, {workload.name}: server {medians['server']:.1f}, library {medians['library']:.1f} output "
        f"tokens/s\nserver over library: of the medians; of the rounds, with a 95% interval: {ratio}\n"
        f"a 400 meanwhile ({len(waits)} of them, at {loaded:.1f} tokens/s): p50 {p50:.1f} ms, p99 {p99:.1f} ms, "
        f"longest {longest:.1f} ms\n{machine.line}; others took {others:.0%} of the cores"
    )
    if args.json is not None:
        document = {
            "measurement": "server against library",
            "machine": asdict(machine),
            "subject": facts,
            "options": {"workload": workload.name, "rounds": args.rounds, **asdict(engine)},
            "output_tokens_per_s": rates,
            "ratio": asdict(ratio),
            "error_seconds": waits,
            "others": others,
        }
        args.json.write_text(json.dumps(document, indent=2) + "\n")
    return 3 if others > ALONE else 0


if __name__ == "__main__":
    sys.exit(main())

"""The proof of the gate, in three commands:

    PYTHONSAFEPATH=1 PYTHONPATH=tests/perf .venv/bin/python -m gate_proof record --artifact artifacts/quickstart \\
        --seconds 3600 --output .scratch/trios.jsonl
    ... -m gate_proof simulate .scratch/trios.jsonl      200 runs of a thing against itself, 100 of 5% slower decoding
    ... -m gate_proof live --artifact artifacts/quickstart      the real gate, against a worker that is 5% slower

``record`` measures trios of one artifact and two copies of it on this machine, whatever else it does meanwhile.
``simulate`` lets the gate's own code decide over the recorded costs, hundreds of times (`simulation` says how), and
writes what came out to tests/perf/results/. ``live`` runs the gate itself, as many times as asked.
"""

import argparse
import json
import shutil
import statistics
import sys
import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np

from pllm.runtime.bench.facts import MachineFacts, now
from pllm.runtime.errors import PllmError
from pllm.runtime.gate.double import double_of
from pllm.runtime.gate.facts import facts_of, num_blocks
from pllm.runtime.gate.gate import SHORT, GateOptions, gate
from pllm.runtime.gate.quantity import Quantity, tasks_for
from pllm.runtime.gate.ratio import log_ratios
from pllm.runtime.gate.run import GateSettings
from pllm.runtime.gate.side import Side
from pllm.runtime.gate.trio import Trio, TrioSpec

from .recording import Recording, read, record
from .simulation import Outcome, quantities_of, simulate
from .slow_worker import SLOWDOWN

ROOT = Path(__file__).resolve().parents[3]
RESULTS = ROOT / "tests" / "perf" / "results"
ALONE = {
    "decode, 8 sequences": 3,
    "prefill, 128 tokens": 5,
    "prefill, 512 tokens": 10,
    "TTFT, W1": 10,
    "TPOT, W1": 5,
    "throughput, W2": 10,
    "start to ready": 15,
    "peak memory": 5,
}
"""What is slowed down by itself, in percent."""


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="gate_proof", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    recording = commands.add_parser("record")
    recording.add_argument("--artifact", type=Path, required=True)
    recording.add_argument("--seconds", type=float, default=3600.0)
    recording.add_argument("--rounds", type=int, default=GateOptions().rounds)
    recording.add_argument("--output", type=Path, required=True)
    recording.set_defaults(run=record_trios)
    simulating = commands.add_parser("simulate")
    simulating.add_argument("recordings", type=Path, nargs="+")
    simulating.add_argument("--seconds", type=float, default=GateSettings().seconds, help="of a run (%(default)g)")
    simulating.add_argument("--output", type=Path, default=RESULTS)
    simulating.set_defaults(run=simulate_runs)
    living = commands.add_parser("live")
    living.add_argument("--artifact", type=Path, required=True)
    living.add_argument("--runs", type=int, default=3)
    living.add_argument("--seconds", type=float, default=GateSettings().seconds)
    living.add_argument("--itself", action="store_true", help="no slowdown: a thing against itself")
    living.add_argument("--short", action="store_true", help="the short gate of .ci/run, whatever else is given")
    living.add_argument("--quantities", nargs="+", default=["*"])
    living.add_argument("--output", type=Path, help="a file, for each run a line")
    living.set_defaults(run=live)
    arguments = parser.parse_args()
    code: int = arguments.run(arguments)
    return code


def record_trios(arguments: argparse.Namespace) -> int:
    base = Side("base", arguments.artifact)
    facts = facts_of(base)
    tasks = tasks_for(facts.rows, facts.max_model_len)
    with double_of(base, facts.num_bytes) as double, double_of(base, facts.num_bytes) as new:
        spec = TrioSpec(base, double, new, tasks, arguments.rounds, num_blocks([facts]))
        for number, trio in enumerate(record(spec, facts, arguments.seconds, arguments.output), 1):
            print(f"trio {number}: {trio.seconds:.1f} s", file=sys.stderr, flush=True)
    return 0


def simulate_runs(arguments: argparse.Namespace) -> int:
    recording = read(*arguments.recordings)
    trios, births = recording.trios, recording.births
    quantities = quantities_of(recording.facts)
    slower = {name: 1 + SLOWDOWN for name in trios[0].costs if name.startswith("decode")}
    full = GateSettings(seconds=arguments.seconds)
    found = {
        "against itself": _runs(recording, quantities, GateOptions(settings=full), 200, {}),
        "decode 5% slower": _runs(recording, quantities, GateOptions(settings=full), 100, slower),
        "short, against itself": _runs(recording, quantities, SHORT, 200, {}),
        "short, decode 5% slower": _runs(recording, quantities, SHORT, 100, slower),
    }
    options = GateOptions(settings=full)
    alone = {
        f"{name} alone, {percent}% more": _summary(_runs(recording, quantities, options, 50, {name: 1 + percent / 100}))
        for name, percent in ALONE.items()
    }
    document = {
        "date": now(),
        "command": "python -m gate_proof simulate " + " ".join(path.name for path in arguments.recordings),
        "what": "the gate's own decisions, simulated on recorded timings; a slowdown is a factor on recorded costs",
        "machine": MachineFacts.here().as_dict(),
        "num_trios": len(trios),
        "num_births": len(births),
        "median_seconds_a_trio": round(statistics.median(trio.seconds for trio in trios), 2),
        "median_seconds_of_births": round(statistics.median(trio.seconds for trio in births), 2),
        "share_of_time_waiting_for_cores": round(statistics.fmean(w for trio in trios for w in trio.waits), 4),
        "settings": {"full": asdict(full), "short": asdict(SHORT)},
        "noise": _noise(trios),
        "runs": {name: _summary(outcomes) for name, outcomes in found.items()} | alone,
    }
    text = json.dumps(document, indent=1) + "\n"
    target = arguments.output / f"{document['date']!s:.10}-gate-proof.json"
    target.write_text(text, encoding="utf-8")
    print(text)
    return 0


def _runs(
    recording: Recording,
    quantities: Sequence[Quantity],
    options: GateOptions,
    count: int,
    factors: Mapping[str, float],
) -> list[Outcome]:
    wanted = [quantity for quantity in quantities if options.wants(quantity.name)]
    return [simulate(recording, wanted, options.settings, factors=factors, seed=seed) for seed in range(count)]


def _summary(outcomes: Sequence[Outcome]) -> dict[str, object]:
    return {
        "runs": len(outcomes),
        "verdicts": dict(Counter(outcome.verdict.value for outcome in outcomes)),
        "blamed": dict(Counter(name for outcome in outcomes for name in outcome.blamed)),
        "suspected_and_cleared": dict(Counter(name for outcome in outcomes for name in outcome.cleared)),
        "not_settled": dict(Counter(name for outcome in outcomes for name in outcome.void)),
        "median_seconds": round(statistics.median(outcome.seconds for outcome in outcomes), 1),
        "median_trios": statistics.median(outcome.num_trios for outcome in outcomes),
    }


def _noise(trios: Sequence[Trio]) -> dict[str, dict[str, float]]:
    """Of base against itself, trio by trio: the standard deviation, and the correlation of neighbours."""
    noise = {}
    for name in trios[0].costs:
        _, logs = log_ratios([trio.costs[name] for trio in trios])
        values = np.array(logs)
        noise[name] = {
            "sd_percent": round(100 * float(values.std()), 2),
            "neighbours": round(float(np.corrcoef(values[:-1], values[1:])[0, 1]), 3),
        }
    return noise


def live(arguments: argparse.Namespace) -> int:
    with tempfile.TemporaryDirectory(prefix="gate-proof-") as folder:
        path = Path(folder)
        (path / "pllm").symlink_to(ROOT / "pllm")
        (path / "gate_proof").symlink_to(Path(__file__).resolve().parent)
        copy = path / "copy"
        shutil.copytree(arguments.artifact, copy)
        base = Side("base", arguments.artifact)
        new = Side("slower", copy, path, "gate_proof.slow_worker")
        if arguments.itself:
            new = Side("again", copy)
        given = GateOptions(settings=GateSettings(seconds=arguments.seconds), quantities=tuple(arguments.quantities))
        options = replace(SHORT if arguments.short else given, only="timings", itself=True)
        for number in range(arguments.runs):
            report = gate(base, new, options, said=lambda text: print(text, file=sys.stderr, flush=True))
            assert report.run is not None
            line = {
                "run": number,
                "verdict": report.verdict.value,
                "seconds": round(report.run.seconds, 1),
                "trios": len(report.run.trios),
                "checks": {check.name: [check.verdict.value, check.reason] for check in report.checks},
            }
            print(report.sentence, f"({report.run.seconds:.0f} s)", flush=True)
            if arguments.output is not None:
                with arguments.output.open("a", encoding="utf-8") as file:
                    file.write(json.dumps(line) + "\n")
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except PllmError as error:
        sys.exit(f"gate_proof: error: {error}")

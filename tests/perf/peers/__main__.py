"""Run pllm and its peers in turn on one model, and say how many times better which is.

    PYTHONSAFEPATH=1 PYTHONPATH=tests/perf .venv/bin/python -m peers \\
        --checkpoint recipes/qwen3-0.6b-random.toml \\
        --artifact 'pllm bf16=artifacts/qwen3-0.6b-random' \\
        --artifact 'pllm float32=artifacts/qwen3-0.6b-random-float32'

W1: one request, 128 tokens in and 32 out. W2: eight at once. W3: 32 requests of 16 to 256 tokens in and 8 to 64 out, 16
at a time. W4: cold processes. Peers are of one precision: in float32 every side computes in float32, and an artifact's
label should say how it stores weights; in int8 and int4 the sides hold their weights so, and each computes as it likes.
Prints one Markdown table, and writes every figure and a plot to tests/perf/results/.
"""

import argparse
import json
import shlex
import statistics
import sys
from dataclasses import asdict
from pathlib import Path

from pllm.build.checkpoint import Checkpoint
from pllm.build.recipe import Recipe
from pllm.runtime.artifact import Artifact
from pllm.runtime.bench.facts import MachineFacts, artifact_facts, now
from pllm.runtime.errors import PllmError

from .comparison import Comparison
from .installed import PEERS, PRECISIONS, side_of
from .metrics import METRICS
from .plot import plot
from .sides import ROOT, Side, Trial, TrialError

RESULTS = ROOT / "tests" / "perf" / "results"
REPS = {"W1": 3, "W2": 2, "W3": 1, "W4": 1}
ALONE = 0.05  # of the cores, for everybody else: above, a comparison is one of who suffers more from company
ENOUGH = 4  # rounds: of fewer, the bootstrap can draw only a handful of samples


def main() -> int:
    options = arguments()
    recipe = Recipe.load(str(options.checkpoint), [])
    checkpoint = Checkpoint.open(recipe, lambda *_: None)
    artifacts = dict(labelled(word) for word in options.artifact)
    manifests = {label: Artifact.read(path).manifest for label, path in artifacts.items()}
    fingerprint = checkpoint.fingerprint()
    for label, manifest in manifests.items():
        if manifest.provenance.checkpoint_sha256 != fingerprint:
            print(f"{artifacts[label]} was built from other weights than {options.checkpoint} has: build it again")
            return 2
    vocab_size = next(iter(manifests.values())).model.vocab_size
    sides = [Side(label, "run_pllm", "library", path.resolve(), is_ours=True) for label, path in artifacts.items()]
    found = [side_of(PEERS[name], checkpoint.directory, fingerprint) for name in chosen_peers(options)]
    sides += [side for side in found if isinstance(side, Side)]
    absent = [reason for reason in found if isinstance(reason, str)]
    machine = MachineFacts.here()
    for reason in absent:
        say(f"left out: {reason}")

    def trial(side: Side, workload: str) -> Trial:
        reps = options.reps or REPS[workload]
        return side.run(workload, vocab_size=vocab_size, reps=reps, threads=options.threads)

    comparison = Comparison(sides)
    for workload in options.workloads:
        comparison.run(workload, options.rounds, trial, say)

    others = comparison.others
    notes = [
        f"{recipe.name}: {options.threads} threads, {PRECISIONS[options.precision]}, rounds: {options.rounds}.",
        f"{machine.line}; {', '.join(f'{name} {number}' for name, number in comparison.versions.items())}.",
        "Ratios: of the medians; then the median of the rounds' ratios with its 95% bootstrap interval.",
        f"Others took {statistics.median(others):.0%} of the cores during a trial (median; at most {max(others):.0%}).",
        *([] if options.rounds >= ENOUGH else ["So few rounds give no interval worth the name: this was a trial."]),
        *agreements(comparison),
        *(f"Left out: {reason}." for reason in absent),
    ]
    print(comparison.table(), "", *notes, sep="\n")
    target = write(options, comparison, machine, {label: artifact_facts(m) for label, m in manifests.items()}, notes)
    say(f"written: {target.relative_to(ROOT) if target.is_relative_to(ROOT) else target}")
    if statistics.median(others) > ALONE:
        raise TrialError(f"others took more than {ALONE:.0%} of the cores in most trials: end them, and measure again")
    return 0


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="peers", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--checkpoint", type=Path, required=True, metavar="RECIPE", help="whose weights all sides read")
    parser.add_argument(
        "--artifact", action="append", required=True, metavar="LABEL=DIR", help="one of pllm's sides; several may be"
    )
    parser.add_argument("--precision", choices=PRECISIONS, default="float32", help="of the peers (%(default)s)")
    parser.add_argument("--peers", nargs="*", choices=PEERS, help="(default: all of the precision)")
    parser.add_argument("--workloads", nargs="+", choices=list(REPS), default=list(REPS), help="(default: all)")
    parser.add_argument("--rounds", type=int, default=5, help="processes of each side and workload (%(default)s)")
    parser.add_argument("--reps", type=int, help="passes in a process (W1 3, W2 2, W3 1)")
    parser.add_argument("--threads", type=int, default=2, help="(default: %(default)s)")
    parser.add_argument("--output", type=Path, default=RESULTS, help="a folder for the JSON document")
    return parser.parse_args()


def labelled(word: str) -> tuple[str, Path]:
    label, found, path = word.partition("=")
    if not found or not label:
        raise SystemExit(f"--artifact {word}: give LABEL=DIR, the label being what the table calls it")
    return label, Path(path)


def chosen_peers(options: argparse.Namespace) -> list[str]:
    if options.peers is not None:
        return list(options.peers)
    return [name for name, peer in PEERS.items() if peer.precision == options.precision]


def agreements(comparison: Comparison) -> list[str]:
    """How much of the text all sides made alike, against pllm's first."""
    first, *others = [side.label for side in comparison.sides]
    lines = []
    for workload in comparison.trials:
        shares = {other: comparison.agreement(workload, first, other) for other in others}
        told = ", ".join(f"{other} {share:.0%}" for other, share in shares.items() if share is not None)
        if told:
            lines.append(f"{workload}: tokens equal to those of {first}, up to a request's first difference: {told}.")
    return lines


def write(
    options: argparse.Namespace,
    comparison: Comparison,
    machine: MachineFacts,
    artifacts: dict[str, dict[str, object]],
    notes: list[str],
) -> Path:
    """One document with every trial. It names no path of this machine but what is below the repository."""
    date = now()
    ours = [side.label for side in comparison.sides if side.is_ours]
    document = {
        "date": date,
        "command": "python -m peers " + shlex.join(sys.argv[1:]).replace(str(ROOT) + "/", ""),
        "machine": machine.as_dict(),
        "versions": comparison.versions,
        "threads": options.threads,
        "rounds": options.rounds,
        "artifacts": artifacts,
        "notes": notes,
        "trials": {
            workload: {
                label: [
                    {"metrics": trial.metrics, "passes": trial.passes, "others": round(trial.others, 4)}
                    for trial in trials
                ]
                for label, trials in kept.items()
            }
            for workload, kept in comparison.trials.items()
        },
        "ratios": {
            workload: {
                f"{mine} / {label}": {
                    name: asdict(ratio)
                    for name, metric in METRICS.items()
                    if (ratio := comparison.ratio(workload, mine, label, metric)) is not None
                }
                for mine in ours
                for label in kept
                if label not in ours
            }
            for workload, kept in comparison.trials.items()
        },
        "table": comparison.table().splitlines(),
    }
    options.output.mkdir(parents=True, exist_ok=True)
    target: Path = options.output / f"{date.replace(':', '')}-{options.checkpoint.stem}-{options.precision}.json"
    target.write_text(json.dumps(document, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    title = f"{options.checkpoint.stem}, {PRECISIONS[options.precision]}, {options.threads} threads, {date:.10}"
    target.with_suffix(".svg").write_text(plot(comparison, title), encoding="utf-8")
    return target


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    try:
        sys.exit(main())
    except PllmError as error:
        sys.exit(f"peers: error: {error}")
    except TrialError as error:
        print(f"peers: error: the measurement is void: {error}", file=sys.stderr)
        sys.exit(3)

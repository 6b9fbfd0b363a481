"""make gpu-check PART=...: what a machine with a GPU runs in one go, within a time that it is given.

    python3 tests/perf/gpu/check.py PART --seconds 520 --output FOLDER

It installs nothing and uses the interpreter that runs it. Each step of a part gets the time that is left, less what is
kept for those after it; a step that fails does not stop the next. Exits with 1 where one failed.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import torch

ROOT = Path(__file__).parents[3]


@dataclass(frozen=True)
class Step:
    """A command of this interpreter's. `{seconds}` and `{output}` stand for its time and the part's folder."""

    name: str
    arguments: tuple[str, ...]
    share: float
    """Of the time left when it starts."""


PARTS: dict[str, tuple[Step, ...]] = {
    "kernels": (
        Step(
            "kernels against float64",
            ("-P", "-m", "pytest", "-q", "-m", "gpu", "-p", "no:cacheprovider", "tests/kernels/cuda"),
            share=0.6,
        ),
        Step(
            "kernels' speed",
            ("tests/perf/gpu/bench_kernels.py", "--seconds", "{seconds}", "--output", "{output}/kernels.jsonl"),
            share=1.0,
        ),
    ),
    "engine": (
        Step(
            "engine: tokens, graphs, memory",
            ("-P", "-m", "pytest", "-q", "-m", "gpu", "-p", "no:cacheprovider", "tests/program", "tests/engine"),
            share=1.0,
        ),
    ),
    **{
        model: (
            Step(
                f"{model}: steps beside the floor",
                ("tests/perf/gpu/bench_engine.py", model, "--seconds", "{seconds}", "--output", "{output}"),
                share=1.0,
            ),
        )
        for model in ("0.6b", "1b", "8b")
    },
    "throughput": (
        Step(
            "256 sequences of 0.6b",
            (
                "tests/perf/gpu/bench_engine.py",
                "0.6b",
                "--throughput",
                "--seconds",
                "{seconds}",
                "--output",
                "{output}",
            ),
            share=1.0,
        ),
    ),
    "peers": (
        Step(
            "transformers, in the same machine",
            ("tests/perf/gpu/bench_peers.py", "--seconds", "{seconds}", "--output", "{output}"),
            share=1.0,
        ),
    ),
}
DRY = ("0.6b", "1b", "8b", "throughput", "peers")
"""The parts whose scripts run without a GPU too, to see that they run: with a tiny model, on the tests' double."""


def run(step: Step, seconds: float, output: Path, *, dry: bool) -> str:
    """How it ended: "passed", "failed" or "out of time"."""
    # A step that keeps its own time gets a little less than is enforced.
    values = {"seconds": str(int(max(10, seconds - 20))), "output": str(output)}
    command = [sys.executable, *(argument.format(**values) for argument in step.arguments), *(["--dry"] if dry else [])]
    # The scripts' own folder, also where Python is told to leave a script's folder out.
    path = os.pathsep.join(part for part in (str(Path(__file__).parent), os.environ.get("PYTHONPATH")) if part)
    environment = {**os.environ, "PYTHONPATH": path}
    print(f"== {step.name}, at most {seconds:.0f} s", flush=True)
    try:
        done = subprocess.run(command, cwd=ROOT, timeout=seconds, check=False, env=environment)
    except subprocess.TimeoutExpired:
        return "out of time"
    return "passed" if done.returncode == 0 else "failed"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=list(PARTS))
    parser.add_argument("--seconds", type=float, default=520)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--dry", action="store_true", help=f"without a GPU, to see that it runs: {', '.join(DRY)}")
    options = parser.parse_args()
    if options.dry and options.part not in DRY:
        parser.error(f"{options.part} has no dry run")
    if not options.dry and not torch.cuda.is_available():
        print("no CUDA device: torch sees none here, so there is nothing to check", file=sys.stderr)
        return 2
    device = "no GPU, a dry run" if options.dry else torch.cuda.get_device_name()
    print(f"{device}, torch {torch.__version__}, Python {sys.version.split()[0]}", flush=True)
    output: Path = options.output.absolute()
    output.mkdir(parents=True, exist_ok=True)
    end = time.monotonic() + options.seconds
    results = {}
    for step in PARTS[options.part]:
        start = time.monotonic()
        ended = run(step, max(30, (end - start) * step.share), output, dry=options.dry)
        results[step.name] = f"{ended}, {time.monotonic() - start:.0f} s"
    print("== summary")
    for name, ended in results.items():
        print(f"{name:40} {ended}")
    rows = [
        json.loads(line)
        for path in sorted(output.glob("*.jsonl"))
        for line in path.read_text(encoding="utf-8").splitlines()
    ]
    for row in rows:
        if row.get("what") == "decode" and row.get("batch") in (1, 8, 64, 256):
            share = f"{row['ms']:9.3f} ms, floor {row['floor_ms']:.3f} ms, {row['of_floor']:.0%} of it"
            print(f"{row['part']}: batch {row['batch']}, context {row['context']:<6} {share}")
    document = {"part": options.part, "device": device, "dry": options.dry, "steps": results, "rows": rows}
    (output / f"{options.part}.json").write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    return 0 if all(ended.startswith("passed") for ended in results.values()) else 1


if __name__ == "__main__":
    raise SystemExit(main())

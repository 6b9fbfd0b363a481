"""make gpu-check PART=...: what a machine with a GPU runs in one go, within a time that it is given.

    python3 tests/perf/gpu/check.py PART --seconds 520 --output FOLDER

It installs nothing and uses the interpreter that runs it. Each step of a part gets the time that is left, less what is
kept for those after it; a step that fails does not stop the next. Exits with 1 where one failed.
"""

import argparse
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
}


def run(step: Step, seconds: float, output: Path) -> str:
    """How it ended: "passed", "failed" or "out of time"."""
    # A step that keeps its own time gets a little less than is enforced.
    values = {"seconds": str(int(max(10, seconds - 20))), "output": str(output)}
    command = [sys.executable, *(argument.format(**values) for argument in step.arguments)]
    print(f"== {step.name}, at most {seconds:.0f} s", flush=True)
    try:
        done = subprocess.run(command, cwd=ROOT, timeout=seconds, check=False)
    except subprocess.TimeoutExpired:
        return "out of time"
    return "passed" if done.returncode == 0 else "failed"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=list(PARTS))
    parser.add_argument("--seconds", type=float, default=520)
    parser.add_argument("--output", type=Path, required=True)
    options = parser.parse_args()
    if not torch.cuda.is_available():
        print("no CUDA device: torch sees none here, so there is nothing to check", file=sys.stderr)
        return 2
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}, Python {sys.version.split()[0]}", flush=True)
    output: Path = options.output.absolute()
    output.mkdir(parents=True, exist_ok=True)
    end = time.monotonic() + options.seconds
    results = {}
    for step in PARTS[options.part]:
        start = time.monotonic()
        ended = run(step, max(30, (end - start) * step.share), output)
        results[step.name] = f"{ended}, {time.monotonic() - start:.0f} s"
    print("== summary")
    for name, ended in results.items():
        print(f"{name:40} {ended}")
    return 0 if all(ended.startswith("passed") for ended in results.values()) else 1


if __name__ == "__main__":
    raise SystemExit(main())

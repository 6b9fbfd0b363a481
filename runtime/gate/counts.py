"""What has no noise: counts of an artifact and of the code that runs it. They are compared exactly.

``python -P -m pllm.runtime.gate.counts ARTIFACT`` writes one JSON object, ``{name: number or text}``, on standard
output. Each part is counted in a process of its own, because a count of imports may not see what another count needs.
"""

import hashlib
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import msgspec

from pllm.runtime.artifact import Artifact
from pllm.runtime.bench.served_artifact import error_of
from pllm.runtime.errors import PllmError
from pllm.runtime.gate.allocation_counter import build_counter, counting_environment
from pllm.runtime.gate.check import Check, Verdict
from pllm.runtime.graphs import Graphs

__all__ = ["Counts", "check_counts", "count_artifact", "golden_digest", "graph_counts", "is_list", "shown"]

Counts = dict[str, int | str]
"""A number; a digest, of which only equality means something; or, where the name `is_list`, words in order."""

_PROCESSES = ("engine", "library", "server")


def count_artifact(directory: Path) -> Counts:
    """All counts, a few seconds. Without a C compiler on the PATH allocations are left out, which their absence tells.

    Raises as `EngineCore.open`, and MeasurementError where a process that counts dies.
    """
    found = graph_counts(Artifact.read(directory))
    found |= _ask("count_steps", directory, "calls")
    with tempfile.TemporaryDirectory(prefix="pllm-counts-") as folder:
        counter = build_counter(Path(folder))
        if counter is not None:
            found |= _ask("count_steps", directory, "allocations", environment=counting_environment(counter))
    for process in _PROCESSES:
        found |= _ask("count_imports", directory, process)
    return found


def graph_counts(artifact: Artifact) -> Counts:
    """Of each program: nodes of its graph after the passes, and the kernels that one run of it calls. Nothing for an
    artifact that was built before these were recorded."""
    graphs = Graphs.of(artifact)
    found: Counts = {}
    for name, graph in () if graphs is None else graphs.programs.items():
        found[f"graph nodes, {name}"] = sum(graph.nodes.values())
        found[f"kernels a run, {name}"] = sum(graph.kernels.values())
        found |= {f"kernels a run, {name}: {kernel}": count for kernel, count in graph.kernels.items()}
    return found


def golden_digest(prompts: Sequence[Sequence[int]], answers: Sequence[Sequence[int]]) -> str:
    """Of golden prompts and their greedy continuations."""
    document = [list(map(list, prompts)), list(map(list, answers))]
    return hashlib.sha256(msgspec.json.encode(document)).hexdigest()[:16]


def is_list(name: str) -> bool:
    """Whether a count of this name is a list of modules, one space between two."""
    return name.startswith("modules of") or name.startswith("modules that")


def check_counts(base: Mapping[str, int | str], new: Mapping[str, int | str]) -> list[Check]:
    """A check for each count of either side, in the order of their names. More is a regression, and so are a module
    that is new and a digest that differs; fewer is none.

    What only the new side counts passes, for there is nothing to compare; what only the base counts is void. A base
    that counts nothing at all, being older than the counts, gives no checks.
    """
    if not base:
        return []
    return [_check(name, _count(base, name), _count(new, name)) for name in dict.fromkeys([*base, *new])]


def _count(counts: Mapping[str, int | str], name: str) -> int | str | None:
    """A kernel that a side never calls is not among its counts."""
    whole, _, part = name.partition(": ")
    return counts.get(name, 0 if part and whole in counts else None)


def _check(name: str, base: int | str | None, new: int | str | None) -> Check:
    seen = shown(name, base), shown(name, new)
    if base is None or new is None:
        verdict = Verdict.PASS if base is None else Verdict.VOID
        reason = "the base does not count it" if base is None else "the new side does not count it"
        return Check(name, *seen, verdict, reason)
    if base == new:
        return Check(name, *seen, Verdict.PASS, "the same")
    if is_list(name):
        before, after = set(str(base).split()), set(str(new).split())
        added, gone = sorted(after - before), sorted(before - after)
        told = [f"{what}: {', '.join(names)}" for what, names in (("new", added), ("gone", gone)) if names]
        return Check(name, *seen, Verdict.REGRESSION if added else Verdict.PASS, "; ".join(told))
    if isinstance(base, str) or isinstance(new, str):
        return Check(name, *seen, Verdict.REGRESSION, "not the same")
    more = new - base
    return Check(name, *seen, Verdict.REGRESSION if more > 0 else Verdict.PASS, f"{more:+,}")


def shown(name: str, count: int | str | None) -> int | str | None:
    """A count as a table shows it: a list by its length."""
    return len(str(count).split()) if is_list(name) and count is not None else count


def _ask(module: str, directory: Path, what: str, *, environment: Mapping[str, str] | None = None) -> Counts:
    command = [sys.executable, "-P", "-m", f"pllm.runtime.gate.{module}", str(directory), what]
    done = subprocess.run(command, capture_output=True, check=False, env=environment)
    if done.returncode:
        said = done.stderr.decode(errors="replace").strip().splitlines()
        reason = said[-1] if said else f"exit code {done.returncode}"
        raise error_of(done.returncode, f"the counts ({what}) of {directory} cannot be taken: {reason}")
    return msgspec.json.decode(done.stdout, type=Counts)


def _main() -> int:
    try:
        found = count_artifact(Path(sys.argv[1]))
    except PllmError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    print(msgspec.json.format(msgspec.json.encode(found), indent=1).decode())
    return 0


if __name__ == "__main__":
    sys.exit(_main())

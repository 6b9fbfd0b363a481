"""``pllm bench startup``: from nothing to ready and to the first token, in fresh processes.

Time is counted from the process's beginning as the kernel has it, so the interpreter's own start is in it. The page
cache is warm: files were read before by a start that is not counted, as they are on a machine where a server is started
again. What a first start after a reboot adds is the disk's.
"""

import http.client
import json
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import msgspec

from pllm.runtime.artifact import Artifact
from pllm.runtime.bench.distribution import Distribution
from pllm.runtime.bench.engine_options import EngineOptions
from pllm.runtime.bench.facts import MachineFacts, artifact_facts
from pllm.runtime.bench.processes import ProcessMemory, process_age, process_tree
from pllm.runtime.bench.report import QUARTILES, Report, Row, quantile_table, say
from pllm.runtime.bench.served_artifact import HOST, error_of, serving
from pllm.runtime.bench.workload import Workload
from pllm.runtime.errors import MeasurementError
from pllm.runtime.memory import format_bytes

__all__ = ["LibraryStart", "ServerStart", "StartupOptions", "measure_startup"]

_WITHIN = 600.0  # seconds for a start


class LibraryStart(msgspec.Struct, frozen=True, kw_only=True):
    """A cold start of the library, in seconds and bytes; ``stages`` are durations, in order, of all that led there."""

    stages: dict[str, float]
    ready: float
    first_token: float
    token_id: int
    peak_rss: int
    pss: int | None

    @classmethod
    def of(cls, artifact: Path, engine: EngineOptions) -> "LibraryStart":
        """One, in a process of its own. Raises the error that it ended with."""
        limits = {"threads": engine.threads, "max_num_seqs": engine.max_num_seqs, "memory": engine.memory}
        options = json.dumps({name: value for name, value in limits.items() if value is not None})
        command = [sys.executable, "-m", "pllm.runtime.bench.cold_start", str(artifact), options]
        try:
            done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, timeout=_WITHIN, check=False)
        except subprocess.TimeoutExpired as error:
            raise MeasurementError(f"the measurement is void: no first token within {_WITHIN:.0f} s") from error
        if done.returncode != 0:
            said = done.stderr.decode(errors="replace").strip().splitlines()
            reason = said[-1] if said else f"exit code {done.returncode}"
            raise error_of(done.returncode, reason)
        return msgspec.json.decode(done.stdout, type=cls)


class ServerStart(msgspec.Struct, frozen=True, kw_only=True):
    """A cold start of ``pllm run``: when it first answered (503), was ready (``/ready`` answered 200), and had streamed
    the first token. Seconds, and bytes of both processes together."""

    answering: float
    ready: float
    first_token: float
    peak_rss: int
    pss: int | None

    @classmethod
    def of(cls, artifact: Path, engine: EngineOptions, vocab_size: int, api_key: str | None) -> "ServerStart":
        """One. Raises the error that it ended with."""
        prompt = Workload.named("W4", vocab_size).requests[0].prompt_token_ids
        deadline = time.monotonic() + _WITHIN
        with serving(str(artifact), engine.flags()) as server:
            server.wait_answering(deadline)
            answering = process_age(server.pid)
            server.wait_ready(deadline)
            ready = process_age(server.pid)
            _first_token(server.port, prompt, api_key)
            first_token = process_age(server.pid)
            memory = ProcessMemory.of(*process_tree(server.pid))
        return cls(answering=answering, ready=ready, first_token=first_token, peak_rss=memory.peak_rss, pss=memory.pss)


@dataclass(frozen=True, slots=True, kw_only=True)
class StartupOptions:
    """``reps`` starts of each kind are measured, after one that warms the page cache."""

    reps: int = 5
    library: bool = True
    server: bool = True


def measure_startup(
    artifact: Path, options: StartupOptions, engine: EngineOptions, api_key: str | None = None
) -> Report:
    """Cold starts of the library and of the server, in turn. Raises what a start ended with."""
    machine = MachineFacts.here("torch", "numpy")
    manifest = Artifact.read(artifact).manifest
    vocab_size = manifest.model.vocab_size
    Workload.named("W4", vocab_size).check(manifest.engine.max_model_len)
    say(f"a start to warm the page cache, then {options.reps} of each kind")
    LibraryStart.of(artifact, engine)
    library: list[LibraryStart] = []
    server: list[ServerStart] = []
    for _ in range(options.reps):
        if options.library:
            library.append(LibraryStart.of(artifact, engine))
        if options.server:
            server.append(ServerStart.of(artifact, engine, vocab_size, api_key))
    rows = [
        *(
            Row(f"library: {name.replace('_', ' ')}", _of(library, name), "ms", 1e3)
            for name in ("ready", "first_token")
        ),
        *(
            Row(f"server: {name.replace('_', ' ')}", _of(server, name), "ms", 1e3)
            for name in ("answering", "ready", "first_token")
        ),
        *(
            Row(f"{kind}: {label}", _of(starts, name), "MiB", 1 / (1 << 20))
            for kind, starts in (("library", library), ("server", server))
            for name, label in (("peak_rss", "peak RSS"), ("pss", "PSS"))
        ),
    ]
    stages = [
        Row(stage, Distribution.of(start.stages[stage] for start in library), "ms", 1e3)
        for stage in (library[0].stages if library else ())
    ]
    facts = artifact_facts(manifest)
    weights = manifest.weights.num_bytes
    tables = [quantile_table(rows, QUARTILES)]
    if stages:
        tables.append(quantile_table(stages, QUARTILES))
    return Report(
        measurement="startup",
        title=f"{facts['name']}: cold processes, {format_bytes(weights)} of weights, page cache warm",
        subject=facts,
        options=asdict(options) | asdict(engine),
        results={
            "page_cache": "warm",
            "library": [msgspec.structs.asdict(start) for start in library],
            "server": [msgspec.structs.asdict(start) for start in server],
        },
        machine=machine,
        tables=tuple(tables),
        notes=("Counted from the process's beginning, which the kernel gives in steps of 10 ms.",),
    )


def _of(starts: "list[LibraryStart] | list[ServerStart]", name: str) -> Distribution | None:
    values = [getattr(start, name) for start in starts]
    return Distribution.of(value for value in values if value is not None)


def _first_token(port: int, prompt: tuple[int, ...], api_key: str | None) -> None:
    """Ask for one token, and return when it has come. The blocking client: nothing else happens meanwhile."""
    connection = http.client.HTTPConnection(HOST, port, timeout=_WITHIN)
    headers = {"Content-Type": "application/json"}
    if api_key:
        headers["Authorization"] = f"Bearer {api_key}"
    body = {"prompt": prompt, "max_tokens": 1, "temperature": 0, "ignore_eos": True, "stream": True}
    try:
        connection.request("POST", "/v1/completions", json.dumps(body), headers)
        answer = connection.getresponse()
        line = answer.readline()
    except (OSError, http.client.HTTPException) as error:
        raise MeasurementError(f"the measurement is void: the server gave no first token ({error})") from error
    finally:
        connection.close()
    if answer.status != 200 or b'"choices":[{' not in line:
        told = line[:300].decode(errors="replace").strip()
        raise MeasurementError(f"the measurement is void: the server answered with {answer.status}: {told}")

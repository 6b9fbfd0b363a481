"""A cold start of the library, watched from inside: ``python -m pllm.runtime.bench.cold_start ARTIFACT OPTIONS``.

A fresh process that opens an artifact as ``LLM`` does, makes the first token of W4's prompt, writes what it took as
JSON on standard output, and ends. Ages are the process's, as the kernel counts them (`processes.process_age`).
"""

import sys
import time

from pllm.runtime.bench.processes import process_age

__all__ = ["main"]

# Read once, before anything else is imported; later stages are differences of the finer clock.
_AGE_AT_ENTRY, _ENTRY = process_age(), time.perf_counter()


def main(arguments: list[str]) -> int:
    """Exit code 0, or that of the error that kept the artifact from opening, its message on standard error."""
    stages: dict[str, float] = {"interpreter": _AGE_AT_ENTRY}
    last = _ENTRY

    def reached(stage: str) -> None:
        nonlocal last
        now = time.perf_counter()
        stages[stage] = now - last
        last = now

    import msgspec  # noqa: PLC0415  (imports are a stage)

    import pllm.runtime.engine_core  # noqa: F401, PLC0415
    from pllm.runtime.bench.engine_run import EngineRun  # noqa: PLC0415
    from pllm.runtime.bench.processes import ProcessMemory  # noqa: PLC0415
    from pllm.runtime.bench.workload import Workload  # noqa: PLC0415
    from pllm.runtime.errors import PllmError  # noqa: PLC0415
    from pllm.runtime.model_options import ModelOptions, open_model  # noqa: PLC0415

    reached("imports")
    artifact, options = arguments
    given = {"enable_prefix_caching": False, **msgspec.json.decode(options, type=dict[str, int | str | bool])}
    try:
        core, intake = open_model(ModelOptions.of("cold_start", artifact, given), reached)
    except PllmError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    reached("tokenizer")
    ready = last
    workload = Workload.uniform(1, 128, 1, concurrency=1, vocab_size=intake.vocab_size)
    run = EngineRun.of(core.engine, workload)
    reached("first token")
    memory = ProcessMemory.of_this()
    found = {
        "stages": stages,
        "ready": _AGE_AT_ENTRY + ready - _ENTRY,
        "first_token": _AGE_AT_ENTRY + run.ended - _ENTRY,
        "token_id": run.token_ids[0][0],
        "peak_rss": memory.peak_rss,
        "pss": memory.pss,
    }
    core.close()
    sys.stdout.write(msgspec.json.encode(found).decode() + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

"""pllm, as a library in this process (W1 to W3), and its cold starts (W4)."""

from contextlib import closing
from pathlib import Path

from pllm import __version__
from pllm.runtime.artifact import Artifact
from pllm.runtime.bench.engine_options import EngineOptions
from pllm.runtime.bench.engine_run import EngineRun
from pllm.runtime.bench.workload import warmup
from pllm.runtime.engine_core import EngineCore
from pllm.runtime.manifest import Manifest

from .worker import Job, Pass, answer

_TOKENS_A_SEQUENCE = 512  # KV that peers are given for each of the sequences that run at once


def pool_memory(manifest: Manifest, concurrency: int) -> int:
    """Bytes to give the engine, so that its KV pool is as large as the peers'; never too small for one sequence."""
    block = manifest.kv.block_size
    blocks = max(-(-manifest.engine.max_model_len // block), concurrency * -(-_TOKENS_A_SEQUENCE // block))
    return manifest.memory.fixed + blocks * manifest.memory.kv_block


def warm(job: Job) -> None:
    manifest = Artifact.read(job.model).manifest
    core = EngineCore.open(
        Path(job.model),
        threads=job.threads,
        max_num_seqs=min(job.workload.concurrency, manifest.engine.max_num_seqs),
        memory=pool_memory(manifest, job.workload.concurrency),
        enable_prefix_caching=False,
    )
    with closing(core):
        core.wait_settled()
        EngineRun.of(core.engine, warmup(job.vocab_size))
        runs = [EngineRun.of(core.engine, job.workload) for _ in range(job.reps)]
        pool = core.plan.kv_bytes
    single = len(job.workload.requests) == 1
    passes = [
        Pass(run.timings[0].ttft if single else None, run.makespan, [list(ids) for ids in run.token_ids])
        for run in runs
    ]
    shares = [share for run in runs for share in run.kv_utilisation]
    answer(passes, {"pllm": __version__}, kv_utilisation=sum(shares) / len(shares), kv_pool=float(pool))


def cold(job: Job) -> None:
    """A cold library and a cold server, each in processes of its own."""
    from pllm.runtime.bench.startup import LibraryStart, ServerStart

    manifest = Artifact.read(job.model).manifest
    memory = pool_memory(manifest, 1)
    engine = EngineOptions(threads=job.threads, max_num_seqs=1, memory=f"{memory} B")
    library = LibraryStart.of(Path(job.model), engine)
    server = ServerStart.of(Path(job.model), engine, job.vocab_size, None)
    answer(
        [],
        {"pllm": __version__},
        peak_rss=float(library.peak_rss),
        cold_ready=library.ready,
        cold_first_token=library.first_token,
        server_ready=server.ready,
        server_first_token=server.first_token,
        server_peak_rss=float(server.peak_rss),
    )


if __name__ == "__main__":
    asked = Job.parse(["library"])
    (cold if asked.cold else warm)(asked)

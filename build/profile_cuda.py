"""Profile on CUDA: the memory that every part takes, the pool that fits, and the latencies of buckets and prompts.

In this process: torch's allocator says what is ours, and nothing of the stages before holds memory of the GPU.
"""

import msgspec

from pllm.build.device_memory import plan_device_memory
from pllm.build.pipeline import Build
from pllm.build.progress import StageProgress
from pllm.runtime.certificate import measure_step
from pllm.runtime.cuda.accelerator import Accelerator, open_accelerator
from pllm.runtime.cuda.served_model import ServedModel, ServedSpec
from pllm.runtime.latencies import Latencies, Latency
from pllm.runtime.manifest import EngineDefaults
from pllm.runtime.memory import MemoryPlan, format_bytes, setting_for
from pllm.runtime.scheduler_config import LOGIT_ROWS, SchedulerConfig

__all__ = ["profile_cuda", "served_model"]

_CONTEXTS = (128, 1024, 4096, 16384)
_PREFILL_SIZES = (32, 128, 512, 2048, 8192)


def served_model(build: Build, accelerator: Accelerator) -> ServedModel:
    """The unfinished artifact as the runtime will open it; nothing of it is loaded yet."""
    engine = build.recipe.engine
    max_model_len = int(engine.max_model_len)
    config = SchedulerConfig(
        max_num_seqs=engine.max_num_seqs,
        max_num_batched_tokens=max(engine.max_num_batched_tokens, engine.max_num_seqs),
        max_model_len=max_model_len,
        block_size=build.kv.block_size,
        num_blocks=-(-max_model_len // build.kv.block_size),
        prefill_chunk=engine.max_num_batched_tokens,
        max_logit_rows=max(LOGIT_ROWS, engine.max_num_seqs),
        vocab_size=build.model.vocab_size,
        lookahead_tokens=1,
        enable_prefix_caching=False,
    )
    spec = ServedSpec(
        directory=build.staging.directory.absolute(),
        programs=build.programs,
        weights=build.weights.files,
        kv=build.kv,
        buckets=tuple(sorted(int(bucket) for bucket in engine.buckets)),
        config=config,
    )
    return ServedModel(spec, accelerator)


def profile_cuda(build: Build, progress: StageProgress) -> None:
    """Measure memory and latencies; choose the prefill chunk. Raises DoesNotFitError and BuildError."""
    engine = build.recipe.engine
    model = served_model(build, open_accelerator())
    progress.show("memory")
    try:
        plan = plan_device_memory(
            model,
            kv_block=build.kv.block_bytes,
            block_size=build.kv.block_size,
            max_model_len=int(engine.max_model_len),
            max_num_seqs=engine.max_num_seqs,
            memory=setting_for("cuda", engine.memory),
        )
        decode, prefill = _latencies(model, progress)
    finally:
        model.close()
    rows = msgspec.json.format(msgspec.json.encode(Latencies((*decode, *prefill))), indent=1)
    build.staging.path("measured/latency.json").write_bytes(rows + b"\n")
    target = engine.inter_token_target_ms
    within = [row.num_tokens for row in prefill if target is None or row.ms <= target]
    build.memory = msgspec.structs.replace(plan.ledger, weights=max(plan.ledger.weights, build.weights.num_bytes))
    build.engine = EngineDefaults(
        max_model_len=int(engine.max_model_len),
        max_num_seqs=engine.max_num_seqs,
        max_num_batched_tokens=engine.max_num_batched_tokens,
        memory=engine.memory,
        threads=engine.threads,
        buckets=tuple(sorted(int(bucket) for bucket in engine.buckets)),
        prefill_chunk=max(within, default=prefill[0].num_tokens),
        inter_token_target_ms=target,
    )
    _say(plan, progress)
    shortest = [row for row in decode if row.context == decode[0].context]
    progress.say(", ".join(f"decode {row.num_seqs}: {row.ms:.2f} ms" for row in shortest))
    progress.say(", ".join(f"prefill {row.num_tokens}: {row.ms:.2f} ms" for row in prefill))


def _latencies(model: ServedModel, progress: StageProgress) -> tuple[list[Latency], list[Latency]]:
    """Every bucket at several lengths of context, and prompts of several sizes."""
    config, runner = model.step_device.config, model.runner()

    def latency(num_seqs: int, num_tokens: int, context: int) -> Latency:
        progress.show(f"{num_seqs} sequences, {num_tokens} tokens after {context}")
        ms = measure_step(runner, config, num_seqs, num_tokens, context)
        return Latency(num_seqs, num_tokens, context, round(ms, 4))

    longest = config.max_model_len - 1
    contexts = sorted({min(context, longest) for context in _CONTEXTS})
    largest = min(config.max_num_batched_tokens, longest)
    sizes = sorted({min(size, largest) for size in (*_PREFILL_SIZES, largest)})
    decode = [latency(bucket, bucket, context) for context in contexts for bucket in model.spec.buckets]
    return decode, [latency(1, size, size) for size in sizes]


def _say(plan: MemoryPlan, progress: StageProgress) -> None:
    ledger = plan.ledger
    terms = {
        "weights": ledger.weights, "activations": ledger.activations, "graphs": ledger.graphs,
        "runtime": ledger.runtime, "KV pool": plan.kv_bytes,
    }  # fmt: skip
    progress.say(", ".join(f"{name} {format_bytes(size)}" for name, size in terms.items()))
    if plan.notice is not None:
        progress.say(plan.notice)

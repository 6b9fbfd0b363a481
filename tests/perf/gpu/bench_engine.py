"""A model on the GPU: built, opened, its decode steps beside the floor, prefill, and with --throughput 256 sequences.

    python3 tests/perf/gpu/bench_engine.py 0.6b --seconds 480 --output FOLDER [--throughput] [--dry]

The floor of a step: t = max(W / BW, 2 R B / F) + B ctx kv / BW, of the bytes W and the count R of the weights that a
step reads, the batch B, the context's length and a token's bytes kv; bandwidth BW and matrix rate F are those of a copy
and of a product, measured first. A step is a replayed graph, timed over many replays. --dry runs everything on a CPU,
with a tiny model and the tests' double of a GPU: its figures mean nothing, but the script is known to run.
"""

import argparse
import random
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from models import recipe_of
from rows import Deadline, Rows

from pllm.build.pipeline import STAGES, build_artifact
from pllm.build.progress import Progress
from pllm.build.recipe import Recipe
from pllm.runtime.artifact import Artifact
from pllm.runtime.cuda import open_model
from pllm.runtime.cuda.pipelined_runner import DecodeRow, Draw
from pllm.runtime.cuda.served_model import ServedModel, ServedSpec
from pllm.runtime.engine_core import EngineCore
from pllm.runtime.manifest import Manifest
from pllm.runtime.sampling_params import SamplingParams
from pllm.runtime.scheduler_config import SchedulerConfig
from pllm.runtime.sequence import Request
from pllm.runtime.step import SampleSpec

ROOT = Path(__file__).parents[3]
CONTEXTS = (1024, 128, 4096)
KEPT_FOR_PREFILL = 60.0


@contextmanager
def machine(dry: bool) -> Iterator[tuple[Any, ...]]:
    """The stages of a build, on the GPU or on the double of one."""
    if not dry:
        yield STAGES
        return
    sys.path.insert(0, str(ROOT))
    from tests.program.cuda_double import STAGES as DOUBLED
    from tests.program.cuda_double import gpu_machine

    with gpu_machine([]):
        yield DOUBLED


def seconds_of(run: Callable[[], object], synchronize: Callable[[], None], *, repeats: int) -> float:
    """Of one run, after one to warm up."""
    run()
    synchronize()
    began = time.perf_counter()
    for _ in range(repeats):
        run()
    synchronize()
    return (time.perf_counter() - began) / repeats


def ceilings(device: torch.device, synchronize: Callable[[], None], rows: Rows, *, dry: bool) -> tuple[float, float]:
    """Bytes a second of a copy, read and written; operations a second of a product in bfloat16."""
    size, side = (1 << 20, 128) if dry else (1 << 30, 8192)
    source = torch.randn(size // 2, device=device).bfloat16()
    target = torch.empty_like(source)
    bandwidth = 4.0 * source.numel() / seconds_of(lambda: target.copy_(source), synchronize, repeats=20)
    a, b = (torch.randn(side, side, device=device).bfloat16() for _ in range(2))
    rate = 2.0 * side**3 / seconds_of(lambda: a @ b, synchronize, repeats=10)
    rows.add("ceilings", gigabytes_per_second=bandwidth / 1e9, teraflops=rate / 1e12)
    return bandwidth, rate


def floor_ms(manifest: Manifest, batch: int, context: int, bandwidth: float, rate: float) -> float:
    """Weights are two bytes each; a table of embeddings is read where the head shares it."""
    kv = manifest.kv.block_bytes / manifest.kv.block_size
    read = manifest.weights.num_bytes
    shapes = {constant.name: constant.shape for constant in manifest.programs[0].constants}
    tables = [shape for name, shape in shapes.items() if name.endswith("embed_tokens.weight")]
    if tables and any(name.endswith("lm_head.weight") for name in shapes):
        read -= 2 * tables[0][0] * tables[0][1]
    return 1e3 * (max(read / bandwidth, read * batch / rate) + batch * context * kv / bandwidth)


def decode_steps(
    model: ServedModel, manifest: Manifest, limits: tuple[float, float], rows: Rows, deadline: Deadline
) -> None:
    """Every bucket over sequences of several lengths, those with 1024 tokens first."""
    config, device = model.step_device.config, model.step_device
    params = SamplingParams(temperature=0.0)
    contexts = sorted({min(context, config.max_model_len - 1) for context in CONTEXTS}, key=lambda c: (c != 1024, c))
    for context in contexts:
        for bucket in model.spec.buckets:
            if deadline.left < KEPT_FOR_PREFILL:
                rows.add("decode", skipped=f"bucket {bucket}, context {context}: out of time")
                continue
            blocks = -(-context // config.block_size)
            if bucket * blocks > config.num_blocks:
                rows.add("decode", skipped=f"bucket {bucket}, context {context}: more blocks than the pool has")
                continue
            tables = [range(i * blocks, (i + 1) * blocks) for i in range(bucket)]
            staged = [
                DecodeRow(
                    context - 1, list(table), Draw(SampleSpec(i, params, (0,), (), seed=0), 0), token_id=1, place=-1
                )
                for i, table in enumerate(tables)
            ]
            device.replay(bucket, staged)
            took = seconds_of(
                lambda bucket=bucket: device.replay_again(bucket),
                model.accelerator.synchronize,
                repeats=3 if bucket > 64 else 20,
            )
            floor = floor_ms(manifest, bucket, context, *limits)
            rows.add(
                "decode", batch=bucket, context=context, ms=1e3 * took, floor_ms=floor, of_floor=floor / (1e3 * took)
            )


def start(artifact: Path, rows: Rows) -> EngineCore:
    """Open the engine, and say what each part of it took."""
    began = last = time.perf_counter()
    parts: dict[str, float] = {}

    def told(part: str) -> None:
        nonlocal last
        parts[part], last = 1e3 * (time.perf_counter() - last), time.perf_counter()

    core = EngineCore.open(artifact, enable_prefix_caching=False, opened_part=told)
    for part, ms in parts.items():
        rows.add("start", of=part, ms=ms)
    rows.add("start", of="all", ms=1e3 * (time.perf_counter() - began), notices="; ".join(core.notices))
    return core


def throughput(core: EngineCore, rows: Rows, deadline: Deadline, *, dry: bool) -> None:
    """256 sequences, prompts and outputs of 100 to 1024 tokens, all at once; greedy, past any end."""
    rng = random.Random(0)
    low, high, count = (4, 24, 12) if dry else (100, 1024, 256)
    vocabulary = core.engine.config.vocab_size
    made = 0
    began = time.perf_counter()
    for i in range(count):
        prompt = tuple(rng.randrange(vocabulary) for _ in range(rng.randint(low, high)))
        params = SamplingParams(temperature=0.0, max_tokens=rng.randint(low, high), ignore_eos=True)
        core.engine.submit(Request(str(i), prompt, params, (), time.monotonic()))
    while core.engine.has_unfinished and deadline.left > 0:
        made += sum(len(delta.token_ids) for delta in core.engine.step())
    took = time.perf_counter() - began
    rows.add(
        "throughput", sequences=count, output_tokens=made, seconds=took, tokens_per_second=made / took,
        finished=not core.engine.has_unfinished,
    )  # fmt: skip


def prefill(core: EngineCore, rows: Rows, deadline: Deadline) -> None:
    """The first token after prompts of several sizes, alone."""
    config = core.engine.config
    for size in (128, 512, 2048, 8192):
        length = min(size, config.max_model_len - 2)
        if deadline.left < 5:
            break
        times = []
        for i in range(4):
            params = SamplingParams(temperature=0.0, max_tokens=1)
            core.engine.submit(Request(f"{size} {i}", (1,) * length, params, (), time.monotonic()))
            began = time.perf_counter()
            while core.engine.has_unfinished:
                core.engine.step()
            times.append(time.perf_counter() - began)
        rows.add("first token", prompt=length, ms=1e3 * min(times[1:]))
        if length < size:
            break


def served(artifact: Path) -> tuple[ServedModel, Manifest]:
    """The model below the engine, over a pool of what is free."""
    opened = Artifact.open(artifact)
    manifest, accelerator = opened.manifest, open_model.open_accelerator()
    engine, kv = manifest.engine, manifest.kv
    room = int(0.9 * (accelerator.free() + accelerator.held())) - manifest.memory.fixed
    num_blocks = min(room // kv.block_bytes, engine.max_num_seqs * -(-engine.max_model_len // kv.block_size))
    tokens = max(engine.max_num_batched_tokens, engine.max_num_seqs)
    config = SchedulerConfig(
        max_num_seqs=engine.max_num_seqs, max_num_batched_tokens=tokens,
        max_model_len=engine.max_model_len, block_size=kv.block_size, num_blocks=num_blocks,
        prefill_chunk=engine.prefill_chunk, max_logit_rows=max(64, engine.max_num_seqs),
        vocab_size=manifest.model.vocab_size, lookahead_tokens=1,
    )  # fmt: skip
    spec = ServedSpec(opened.directory, manifest.programs, manifest.weights.files, manifest.kv, engine.buckets, config)
    model = ServedModel(spec, accelerator)
    model.load_weights()
    model.make_pool(num_blocks)
    model.capture()
    return model, manifest


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", choices=("0.6b", "1b", "8b"))
    parser.add_argument("--seconds", type=float, default=480)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--throughput", action="store_true", help="256 sequences instead of single steps")
    parser.add_argument("--dry", action="store_true")
    options = parser.parse_args()
    deadline, output = Deadline(options.seconds), options.output
    output.mkdir(parents=True, exist_ok=True)
    name = "tiny" if options.dry else options.model
    part = "throughput" if options.throughput else options.model
    device = "none: a dry run" if options.dry else torch.cuda.get_device_name()
    rows = Rows(output / f"{part}.jsonl", part, device)
    with machine(options.dry) as stages:
        artifact = output / name
        began = time.perf_counter()
        build_artifact(Recipe.load(recipe_of(name, output), []), artifact, Progress(), stages=stages, force=options.dry)
        rows.add("build", seconds=time.perf_counter() - began)
        if options.throughput:
            core = start(artifact, rows)
            throughput(core, rows, deadline, dry=options.dry)
            core.close()
            return 0
        model, manifest = served(artifact)
        limits = ceilings(model.accelerator.device, model.accelerator.synchronize, rows, dry=options.dry)
        decode_steps(model, manifest, limits, rows, deadline)
        model.close()
        core = start(artifact, rows)
        prefill(core, rows, deadline)
        core.close()
    return 0


if __name__ == "__main__":
    raise SystemExit(main())

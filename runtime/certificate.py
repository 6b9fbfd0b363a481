"""The certificate, repeated here: the golden tokens, which must be the same, and the latencies, which inform."""

import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TypeVar

import msgspec

from pllm.runtime.artifact import Artifact
from pllm.runtime.engine import Engine, ModelRunner
from pllm.runtime.engine_core import EngineCore
from pllm.runtime.errors import ArtifactDamagedError
from pllm.runtime.finding import Finding
from pllm.runtime.latencies import Latencies, Latency
from pllm.runtime.sampling_params import SamplingParams
from pllm.runtime.scheduler_config import SchedulerConfig
from pllm.runtime.sequence import Request
from pllm.runtime.step import SampleSpec, ScheduledRow, SchedulerOutput

__all__ = ["Golden", "GoldenPrompt", "Latencies", "Latency", "measure_step", "replay", "step_of", "verify_golden"]

_REPEATS = 5


class GoldenPrompt(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A prompt, and its greedy continuation, past any end-of-sequence token."""

    prompt_token_ids: tuple[int, ...]
    token_ids: tuple[int, ...]


class Golden(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """``golden.json``."""

    prompts: tuple[GoldenPrompt, ...]


def verify_golden(artifact: Artifact) -> Iterable[Finding]:
    """Replay the artifact's golden prompts and measure its steps again; a finding for each.

    Raises ArtifactError and its kinds where it cannot be opened.
    """
    manifest = artifact.manifest
    golden = _read(artifact.path(manifest.golden), Golden)
    latencies = Latencies.read(artifact.path(manifest.latency))
    core = EngineCore.open(artifact.directory, enable_prefix_caching=False, max_waiting=max(1, len(golden.prompts)))
    try:
        yield from _golden_findings(core.engine, golden)
        yield from _latency_findings(core, latencies)
    finally:
        core.close()


def replay(engine: Engine, prompts: Iterable[tuple[tuple[int, ...], int]]) -> list[tuple[int, ...]]:
    """Continue prompts greedily, together, each by a number of tokens; end-of-sequence tokens end nothing.

    A sequence that fails has the tokens up to there.
    """
    found: dict[str, list[int]] = {}
    for i, (prompt, count) in enumerate(prompts):
        params = SamplingParams(temperature=0.0, max_tokens=count, ignore_eos=True)
        found[str(i)] = []
        engine.submit(Request(str(i), prompt, params, eos_token_ids=(), arrival_time=time.monotonic()))
    while engine.has_unfinished:
        for delta in engine.step():
            found[delta.request_id] += delta.token_ids
    return [tuple(token_ids) for token_ids in found.values()]


def step_of(config: SchedulerConfig, num_seqs: int, num_tokens: int, context: int) -> SchedulerOutput:
    """A step to be timed: `num_seqs` sequences of `context` tokens after the step, which share its `num_tokens` new
    ones. Overwrites KV blocks: only while nothing runs.
    """
    new = max(1, num_tokens // num_seqs)
    blocks = -(-context // config.block_size)
    # One token and no more: nothing is launched ahead of what is timed.
    params = SamplingParams(temperature=0.0, max_tokens=1)
    rows = tuple(
        ScheduledRow(
            seq_id=i,
            start=context - new,
            token_ids=[0] * new,
            # Sequences share blocks where the pool has too few: the time is the same, and the values mean nothing.
            block_table=[(i * blocks + j) % config.num_blocks for j in range(blocks)],
            samples=(SampleSpec(i, params, (0,), (), seed=0),),
        )
        for i in range(num_seqs)
    )
    return SchedulerOutput(rows)


def measure_step(runner: ModelRunner, config: SchedulerConfig, num_seqs: int, num_tokens: int, context: int) -> float:
    """Milliseconds of one step as `step_of` makes it, the median of a few, after one to warm up."""
    out = step_of(config, num_seqs, num_tokens, context)
    durations = []
    for _ in range(_REPEATS + 1):
        began = time.perf_counter()
        runner.execute(out)
        durations.append(time.perf_counter() - began)
    return 1e3 * sorted(durations[1:])[_REPEATS // 2]


def _golden_findings(engine: Engine, golden: Golden) -> Iterator[Finding]:
    here = replay(engine, ((prompt.prompt_token_ids, len(prompt.token_ids)) for prompt in golden.prompts))
    for i, (prompt, tokens) in enumerate(zip(golden.prompts, here, strict=True)):
        agrees = tokens == prompt.token_ids
        same = next((j for j, (a, b) in enumerate(zip(prompt.token_ids, tokens, strict=False)) if a != b), len(tokens))
        yield Finding(
            f"golden prompt {i + 1}: {len(prompt.prompt_token_ids)} tokens, continued",
            f"{len(prompt.token_ids)} tokens",
            "the same tokens" if agrees else f"other tokens from the {same + 1}th on",
            agrees,
        )


def _latency_findings(core: EngineCore, latencies: Latencies) -> Iterator[Finding]:
    config = core.engine.config
    for row in latencies.rows:
        fits = (
            1 <= row.num_seqs <= min(config.max_num_seqs, row.num_tokens)
            and row.num_tokens <= config.max_num_batched_tokens
            and row.num_tokens // row.num_seqs <= row.context <= config.max_model_len
        )
        here = "does not fit"
        if fits:
            ms = measure_step(core.model_runner, config, row.num_seqs, row.num_tokens, row.context)
            here = f"{ms:.2f} ms"
        yield Finding(
            f"step of {row.num_tokens} tokens, {row.num_seqs} sequences of {row.context}",
            f"{row.ms:.2f} ms",
            here,
            None,
        )


_T = TypeVar("_T")


def _read(path: Path, kind: type[_T]) -> _T:
    try:
        return msgspec.json.decode(path.read_bytes(), type=kind)
    except msgspec.DecodeError as error:
        raise ArtifactDamagedError(f"{path} is malformed: {error}; build the artifact again", path) from error

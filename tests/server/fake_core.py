"""An engine whose model is a function: it says the prompt's own characters again, and then ends. The scheduler is real.

Requests ask for trouble by their seed. ``PLLM_FAKE_STEP`` is the seconds that a step takes, ``PLLM_FAKE_OPEN`` those
that opening takes; ``PLLM_FAKE_OPEN_ERROR`` names what opening raises.
"""

import os
import time
from pathlib import Path
from types import SimpleNamespace

from pllm.runtime import errors
from pllm.runtime.engine import Engine
from pllm.runtime.grammar_store import GrammarStore
from pllm.runtime.latencies import Latencies
from pllm.runtime.scheduler import Scheduler
from pllm.runtime.scheduler_config import SchedulerConfig
from pllm.runtime.step import (
    GrammarFailedError,
    SampledToken,
    SampleSpec,
    SchedulerOutput,
    StepResult,
    TokenLogprobs,
)

RAISE, HANG, SPOIL, EXIT = 9001, 9002, 9003, 9004
BYTES = 256  # token ids below this are bytes; above are special
END = 258
VOCAB = 260


class Parrot:
    def __init__(self, step_seconds: float) -> None:
        self._step_seconds = step_seconds

    def execute(self, out: SchedulerOutput) -> StepResult:
        time.sleep(self._step_seconds)
        tokens = [self._sample(spec) for row in out.rows for spec in row.samples]
        prompt_logprobs = {
            row.seq_id: tuple(logprobs_of(token) for token in row.prompt_targets)
            for row in out.rows
            if row.prompt_logprobs is not None
        }
        return StepResult(tuple(tokens), prompt_logprobs)

    def _sample(self, spec: SampleSpec) -> SampledToken:
        seed = spec.params.seed
        if seed == RAISE and len(spec.output_token_ids) == 2:
            raise RuntimeError("asked to")
        if seed == HANG and len(spec.output_token_ids) == 2:
            time.sleep(600)
        if seed == EXIT and len(spec.output_token_ids) == 2:
            os._exit(7)
        words = [token for token in spec.prompt_token_ids if token < BYTES]
        place = len(spec.output_token_ids)
        over = place >= len(words) and not spec.params.ignore_eos
        token = END if over or not words else words[place % len(words)]
        if spec.matcher is not None:
            try:
                token = preferred(token, spec.matcher.allowed(spec.output_token_ids))
            except GrammarFailedError as error:
                return SampledToken(spec.seq_id, 0, error=str(error))
        if seed == SPOIL and place == 2:
            return SampledToken(spec.seq_id, 0, error="the logits are not numbers")
        wants = spec.params.logprobs is not None
        return SampledToken(spec.seq_id, token, logprobs_of(token) if wants else None)


def preferred(token: int, allowed: bytes) -> int:
    """What the parrot would say where its grammar allows it; else the end, a sign, a letter: the first of them."""
    tokens = [token, END, *range(ord("!"), BYTES), *range(ord("!"))]
    return next(token for token in tokens if allowed[token // 8] >> token % 8 & 1)


def logprobs_of(token: int) -> TokenLogprobs:
    """The token itself is the second likeliest; before it the letter x."""
    return TokenLogprobs(token, -1.5, 2, ((ord("x"), -0.5, 1), (token, -1.5, 2), (ord("z"), float("-inf"), 3)))


class FakeCore:
    latencies = Latencies(())
    notices = ("this is a parrot",)

    def __init__(self, artifact: Path, config: SchedulerConfig) -> None:
        forms = tuple(f"grammars/{path.name}" for path in artifact.glob("grammars/*"))
        self.manifest = SimpleNamespace(
            name="parrot",
            provenance=SimpleNamespace(checkpoint="tests/parrot"),
            grammars=SimpleNamespace(files=forms) if forms else None,
        )
        self._grammars = GrammarStore(artifact / "tokenizer" / "tokenizer.json", VOCAB)
        parrot = Parrot(float(os.environ.get("PLLM_FAKE_STEP", "0")))
        self.engine = Engine(Scheduler(config), parrot, self._grammars)

    def close(self) -> None:
        self._grammars.close()


def open_core(artifact: Path, max_num_seqs: int = 8, **limits: object) -> FakeCore:
    time.sleep(float(os.environ.get("PLLM_FAKE_OPEN", "0")))
    error = os.environ.get("PLLM_FAKE_OPEN_ERROR")
    if error:
        raise getattr(errors, error)("this artifact cannot be opened: build it again")
    return FakeCore(
        artifact,
        SchedulerConfig(
            max_num_seqs=max_num_seqs,
            max_num_batched_tokens=512,
            max_model_len=512,
            block_size=16,
            num_blocks=256,
            prefill_chunk=256,
            max_logit_rows=512,
            vocab_size=VOCAB,
        ),
    )

"""An engine core whose model is a function of the tokens before it: everything is real but the arithmetic."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, ClassVar

from pllm.runtime.engine import Engine
from pllm.runtime.scheduler import Scheduler, SchedulerConfig
from pllm.runtime.step import SampledToken, SchedulerOutput, StepResult, TokenLogprobs

NextToken = Callable[[Sequence[int], Sequence[int], int], int]
"""(prompt ids, output ids, the sequence's seed) to the next id."""


class FunctionRunner:
    """A model runner that asks a function for every token."""

    def __init__(self, next_token: NextToken) -> None:
        self.next_token = next_token
        self.num_steps = 0

    def execute(self, out: SchedulerOutput) -> StepResult:
        self.num_steps += 1
        tokens = []
        prompt_logprobs = {}
        for row in out.rows:
            for spec in row.samples:
                token = self.next_token(spec.prompt_token_ids, spec.output_token_ids, spec.seed)
                top = () if spec.params.logprobs is None else ((token, -0.5, 1), (1, -1.5, 2))[: spec.params.logprobs]
                logprobs = None if spec.params.logprobs is None else TokenLogprobs(token, -0.5, 1, top)
                tokens.append(SampledToken(spec.seq_id, token, logprobs))
            if row.prompt_logprobs is not None:
                prompt_logprobs[row.seq_id] = tuple(TokenLogprobs(t, -2.0, 3, ()) for t in row.prompt_targets)
        return StepResult(tuple(tokens), prompt_logprobs)


class FakeCore:
    """Stands for `pllm.runtime.engine_core.EngineCore`. Set `next_token` and `config` before it is opened."""

    next_token: NextToken
    config: ClassVar[dict[str, Any]] = {}
    opened_with: ClassVar[dict[str, Any]] = {}

    def __init__(self, artifact: Path, vocab_size: int, limits: dict[str, Any]) -> None:
        defaults = {
            "max_num_seqs": 4,
            "max_num_batched_tokens": 64,
            "max_model_len": 128,
            "block_size": 16,
            "num_blocks": 32,
            "prefill_chunk": 32,
            "max_logit_rows": 64,
            "vocab_size": vocab_size,
        }
        own = {name: value for name, value in limits.items() if name in defaults}
        self.runner = FunctionRunner(type(self).next_token)
        config = SchedulerConfig(**{**defaults, **type(self).config, **own})
        self.engine = Engine(Scheduler(config), self.runner)
        self.is_closed = False

    @classmethod
    def open(cls, artifact: Path, **limits: Any) -> "FakeCore":
        from tokenizers import Tokenizer

        cls.opened_with = {"artifact": artifact, **limits}
        cls.last = cls(
            artifact, Tokenizer.from_file(str(artifact / "tokenizer" / "tokenizer.json")).get_vocab_size(), limits
        )
        return cls.last

    def close(self) -> None:
        self.is_closed = True

"""Steady decoding, to be counted: a fixed number of steps in which every sequence decodes and none begins or ends."""

from collections.abc import Callable
from typing import TypeVar

import msgspec

from pllm.runtime.engine import Engine
from pllm.runtime.errors import MeasurementError, UserInputError
from pllm.runtime.intake import Intake, Prompt
from pllm.runtime.request_text import RequestText
from pllm.runtime.sampling_params import SamplingParams
from pllm.runtime.text_engine import TextEngine

__all__ = ["DRAWN", "GREEDY", "SteadySteps"]

GREEDY = SamplingParams(temperature=0.0)
DRAWN = SamplingParams(temperature=0.8, top_p=0.9, top_k=50, seed=1)

_BLOCKS = 4
"""Of an answer, in KV blocks: some are for sequences to come together, and one is counted."""
_WARM_STEPS = 3

_T = TypeVar("_T")


class SteadySteps:
    """``size`` steps: as many as a KV block has slots, so that each sequence enters one new block, wherever it began.
    Of ``num_tokens`` in all, which each sequence makes.

    Without end tokens; prompts of one block, all different. The engine must not cache prefixes. Raises UserInputError
    for an artifact whose context is too short for that.
    """

    def __init__(self, engine: Engine, intake: Intake) -> None:
        self.size = engine.config.block_size
        self.num_tokens = _BLOCKS * self.size
        self._engine = engine
        self._intake = intake
        needed = self.size + self.num_tokens
        if engine.config.max_model_len < needed:
            raise UserInputError(
                f"a context of {engine.config.max_model_len} tokens is too short for steps to be counted: it must be "
                f"{needed}, five KV blocks"
            )

    @property
    def batches(self) -> tuple[int, ...]:
        """One sequence, and eight, or as many as run at once."""
        return tuple(sorted({1, min(8, self._engine.config.max_num_seqs)}))

    def run(
        self,
        num_seqs: int,
        measure: Callable[[Callable[[], None]], _T],
        *,
        params: SamplingParams = GREEDY,
        text: bool = False,
    ) -> _T:
        """What ``measure`` makes of the steps: it is given a function that does all of them, and nothing else.

        ``text``: the tokens are made into text besides, as the library and the server do.
        """
        engine, reading = self._engine, TextEngine(self._engine)
        step: Callable[[], object] = reading.step if text else engine.step
        before = engine.stats().prompt_tokens_computed
        for i in range(num_seqs):
            request = self._request(i, params)
            if text:
                reading.submit(request)
            else:
                engine.submit(request.request)
        while engine.stats().prompt_tokens_computed < before + num_seqs * self.size:
            step()
        for _ in range(_WARM_STEPS):
            step()

        def steps() -> None:
            for _ in range(self.size):
                step()

        found = measure(steps)
        if engine.stats().num_running != num_seqs:
            raise MeasurementError(f"{num_seqs} sequences did not decode side by side for {self.size} steps")
        while engine.has_unfinished:
            step()
        return found

    def _request(self, number: int, params: SamplingParams) -> RequestText:
        vocabulary = self._intake.vocab_size
        prompt = Prompt(tuple((number + 10 + i) % vocabulary for i in range(self.size)))
        params = msgspec.structs.replace(params, max_tokens=self.num_tokens, ignore_eos=True)
        return self._intake.request(str(number), prompt, params)

"""A device for the pipelined runner, over the fake model: it knows no more than a GPU would.

It carries out launches in order, takes the tokens of earlier launches from its own memory, and hands a launch's tokens
out only where they are waited for. `calls` records who asked for what, and when.
"""

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from pllm.runtime.cuda.pipelined_runner import DecodeRow, Draw, PipelinedRunner
from pllm.runtime.engine import Engine
from pllm.runtime.inputs import StagedStep
from pllm.runtime.sampling import Sampler
from pllm.runtime.scheduler import Scheduler, SchedulerConfig
from pllm.runtime.step import SampleSpec, SchedulerOutput, StepResult

from .fake_model import VOCAB, Run, config, logits_of


class _Launched:
    def __init__(self, device: "FakeDevice", name: str, tokens: list[int], logits: NDArray[np.float32]) -> None:
        self._device, self._name, self._tokens, self._logits = device, name, tokens, logits

    def tokens(self) -> list[int]:
        self._device.calls.append(f"wait {self._name}")
        return self._tokens

    def logits(self) -> NDArray[np.float32]:
        self._device.calls.append(f"wait {self._name}'s logits")
        return self._logits


class FakeDevice:
    """A StepDevice. `broken` seq_ids have logits that are not finite."""

    def __init__(self, config: SchedulerConfig) -> None:
        self.config = config
        self.memory = np.full((config.num_blocks, config.block_size, 2), -1, np.int64)  # token, position
        self.places = np.full(2 * config.max_num_seqs, -1, np.int64)
        self.histories: dict[int, list[int]] = {}
        self.calls: list[str] = []
        self.rows: list[int] = []
        self.broken: set[int] = set()

    def decode(self, rows: Sequence[DecodeRow]) -> _Launched:
        assert 0 < len(rows) <= self.config.max_num_seqs
        for row in rows:
            assert (row.token_id < 0) == (row.place >= 0)
        name = self._begin("decode", len(rows))
        inputs = [int(self.places[row.place]) if row.token_id < 0 else row.token_id for row in rows]
        logits = self._compute(
            [(row.block_table, row.position, [token]) for row, token in zip(rows, inputs, strict=True)]
        )
        tokens = [self._draw(values[-1], row.draw) for values, row in zip(logits, rows, strict=True)]
        self.places[: len(rows)] = tokens
        return _Launched(self, name, tokens, np.stack([values[-1] for values in logits]))

    def mixed(self, step: StagedStep, draws: Sequence[Draw | None]) -> _Launched:
        arrays, size = step.arrays, self.config.block_size
        starts = arrays["query_start"].tolist()
        name = self._begin("mixed", len(starts) - 1)
        rows = []
        for b, (begin, end) in enumerate(pairwise(starts)):
            context = int(arrays["context_len"][b])
            table = arrays["block_table"][b, : -(-context // size)].tolist()
            rows.append((table, context - (end - begin), arrays["input_ids"][begin:end].tolist()))
        computed = np.concatenate(self._compute(rows))
        logits = computed[arrays["logits_index"]]
        tokens = [
            -1 if draw is None else self._draw(logits[row], draw)
            for row, draw in zip(step.sample_rows, draws, strict=True)
        ]
        for index, spec in enumerate(step.samples):
            logits[step.sample_rows[index]] *= np.nan if spec[0].seq_id in self.broken else 1
        first = self.config.max_num_seqs
        self.places[first : first + len(tokens)] = tokens
        return _Launched(self, name, tokens, logits)

    def copy_blocks(self, pairs: Sequence[tuple[int, int]]) -> None:
        self.calls.append("copy")
        for source, target in pairs:
            self.memory[target] = self.memory[source]

    def _begin(self, kind: str, rows: int) -> str:
        self.rows.append(rows)
        name = f"{kind} {len(self.rows)}"
        self.calls.append(f"launch {name}")
        return name

    def _compute(self, rows: Sequence[tuple[Sequence[int], int, list[int]]]) -> list[NDArray[np.float32]]:
        """Logits after each new token. What lies in the slots is not checked: a row that nobody wants may be wrong."""
        size, logits = self.config.block_size, []
        for table, start, token_ids in rows:
            for position, token in enumerate(token_ids, start):
                self.memory[table[position // size], position % size] = token, position
        for table, start, token_ids in rows:
            stored = self.memory[list(table)].reshape(-1, 2)[:, 0].tolist()
            logits.append(np.stack([logits_of(stored[: start + i + 1]) for i in range(len(token_ids))]))
        return logits

    def _draw(self, logits: NDArray[np.float32], draw: Draw) -> int:
        """As the CPU's sampler draws, so that tokens can be compared with those of the other runner."""
        spec = draw.spec
        if spec.seq_id in self.broken:
            return -1
        history = [0] * draw.index  # of which the sampler takes the length
        if draw.slot >= 0:
            if draw.is_known:
                self.histories[draw.slot] = list(spec.output_token_ids)
            history = list(self.histories[draw.slot])
            assert len(history) == draw.index
        alone = SampleSpec(spec.seq_id, spec.params, spec.prompt_token_ids, history, spec.seed)
        [token] = Sampler().sample(logits[None], [(alone,)])
        if draw.slot >= 0:
            self.histories[draw.slot].append(token.token_id)
        return token.token_id


class PipelinedRun(Run):
    """A Run whose engine drives the pipelined runner."""

    def __init__(self, **changes: object) -> None:
        super().__init__(**changes)
        self.config = config(lookahead_tokens=1, **changes)
        self.device = FakeDevice(self.config)
        self.scheduler = Scheduler(self.config)
        self.runner = Recording(PipelinedRunner(self.device, self.config), self.device)  # type: ignore[assignment]
        self.engine = Engine(self.scheduler, self.runner)

    def check(self) -> None:
        pool = self.scheduler._pool
        assert pool.num_free + pool.num_cached + pool.num_used == pool.num_blocks
        assert all(0 <= token < VOCAB for delta in self.deltas for token in delta.token_ids)


class Recording:
    """A runner whose steps are kept, and which says when it begins and ends."""

    def __init__(self, runner: PipelinedRunner, device: FakeDevice) -> None:
        self._runner, self._device = runner, device
        self.steps: list[SchedulerOutput] = []

    def execute(self, out: SchedulerOutput) -> StepResult:
        self.steps.append(out)
        self._device.calls.append(f"execute {len(self.steps)}")
        result = self._runner.execute(out)
        self._device.calls.append(f"return {len(self.steps)}")
        return result

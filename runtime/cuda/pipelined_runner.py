"""The model runner on a GPU: the CPU runs one step behind the device.

What a step samples stays on the device, where the next step finds it. So the runner launches step n + 1 before it has
seen what step n came to, for every sequence that can only go on by one token; then it waits for step n. While the
device computes step n + 1, the scheduler takes in step n and decides step n + 1: what it decides is mostly under way.

    scheduler    |update n-1|schedule n|                    |update n|schedule n+1|
    runner                             |launch n+1|wait n...|                     |launch n+2|wait n+1...
    device    .. step n .............................|step n+1 .................................|step n+2

The contract with the scheduler is that of every model runner: `execute` takes a decision and returns its tokens, and
the scheduler knows nothing of what was launched ahead. Three things follow:

- A row that was launched ahead is the row that it asks for, or it is dropped: a sequence that has ended, was aborted or
  preempted is not asked for, and its token is discarded. So a stop is seen one step late, and costs one row of a step.
- What was dropped wrote keys and values into blocks that may have another owner by now. The device carries out launches
  in order, so that the owner's own come later; and a block is in the prefix cache only when it is full, before which
  nobody launches past it.
- A row can be launched ahead only where its blocks reach: `SchedulerConfig.lookahead_tokens` has the scheduler take the
  next block one step early.

Rows that need their logits on the CPU (log probabilities, masks, grammars) are sampled there, from the first token to
the last: which way a sequence's tokens are drawn depends on its parameters alone, never on its neighbours. For
penalties the device keeps a history of each sequence that asks for them (`history_slots`).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from pllm.runtime.cuda.history_slots import HistorySlots
from pllm.runtime.inputs import InputBuffers, StagedStep
from pllm.runtime.sampling import NOT_FINITE, Sampler
from pllm.runtime.sampling_params import SamplingParams
from pllm.runtime.scheduler_config import SchedulerConfig
from pllm.runtime.step import SampledToken, SampleSpec, ScheduledRow, SchedulerOutput, StepResult, TokenLogprobs

__all__ = ["DecodeRow", "Draw", "Launch", "MixedLaunch", "PipelinedRunner", "StepDevice", "draws_on_device"]


@dataclass(frozen=True, slots=True)
class Draw:
    """A token to be drawn on the device."""

    spec: SampleSpec
    index: int
    """How many tokens the sequence has drawn before: with its seed, what the draw depends on."""
    slot: int = -1
    """Where the device keeps the sequence's history, if it is penalised; else -1."""
    is_known: bool = True
    """Whether the spec holds all tokens drawn before: the history is written from it first. Else the device has it."""


@dataclass(frozen=True, slots=True)
class DecodeRow:
    """One sequence's next token, and what is drawn after it."""

    position: int
    """Of the token, in its sequence."""
    block_table: Sequence[int]
    """Covers the position, at least."""
    draw: Draw
    token_id: int
    """The token; -1 where it was drawn by an earlier launch and only the device knows it."""
    place: int
    """Where the device has it, if so: what the launch that drew it gave it."""


class Launch(Protocol):
    """A launch on its way."""

    def tokens(self) -> list[int]:
        """Wait for it, and return the tokens in the order of its draws; -1 where logits were not finite."""


class MixedLaunch(Launch, Protocol):
    """A launch of rows of any kind, whose logits can be had too."""

    def logits(self) -> NDArray[np.float32]:
        """Wait for it, and return the logits [R, V] of the positions that it was asked for."""


class StepDevice(Protocol):
    """A device that carries out launches in order. None of these waits for it.

    Tokens lie on the device where they were drawn: row i of `decode` at place i, draw i of `mixed` at place
    max_num_seqs + i, until the next launch of the same kind.
    """

    def decode(self, rows: Sequence[DecodeRow]) -> Launch:
        """One token of each row, then a draw of each."""

    def mixed(self, step: StagedStep, draws: Sequence[Draw | None]) -> MixedLaunch:
        """A step as staged; `draws` for each of its sample rows, None where the CPU draws. The step's arrays may
        change as soon as this returns."""

    def copy_blocks(self, pairs: Sequence[tuple[int, int]]) -> None:
        """Copy whole KV blocks, (source, target), one after another."""


def draws_on_device(samples: Sequence[SampleSpec]) -> bool:
    """Whether what a row samples is drawn on the device: by the parameters alone, the same in every step."""
    if len(samples) != 1:
        return False
    spec = samples[0]
    params = spec.params
    return (
        spec.matcher is None
        and params.logprobs is None
        and params.prompt_logprobs is None
        and params.allowed_token_ids is None
        and not params.logit_bias
        and not spec.bad_words_token_ids
        and params.min_tokens == 0
    )


def _is_penalised(params: SamplingParams) -> bool:
    return (params.repetition_penalty, params.frequency_penalty, params.presence_penalty) != (1, 0, 0)


@dataclass(frozen=True, slots=True)
class _Ahead:
    """What was launched before the scheduler asked for it."""

    rows: dict[int, tuple[int, DecodeRow]]
    """By seq_id: the row's index, which is its place, and the row."""
    launch: Launch


class PipelinedRunner:
    """A ModelRunner (`pllm.runtime.engine`) over a device. One thread calls it."""

    def __init__(self, device: StepDevice, config: SchedulerConfig) -> None:
        self.device = device
        self._config = config
        self._inputs = InputBuffers(config)
        self._sampler = Sampler()
        self._slots = HistorySlots(config.max_num_seqs)
        self._ahead: _Ahead | None = None

    def execute(self, out: SchedulerOutput) -> StepResult:
        """The step's tokens, the next one launched. Raises PllmError where the device fails."""
        ahead, self._ahead = self._ahead, None
        self._slots.keep(row.seq_id for row in out.rows)
        known = {} if ahead is None else ahead.rows
        kept = [row for row in out.rows if row.seq_id in known and self._is_same(row, known[row.seq_id][1], out)]
        kept_ids = {row.seq_id for row in kept}
        rest = [row for row in out.rows if row.seq_id not in kept_ids]
        if out.copies:
            self.device.copy_blocks(out.copies)

        places = {row.seq_id: known[row.seq_id][0] for row in kept}
        decoding, mixed, step = None, None, None
        draws: list[Draw | None] = []
        if rest and not kept and all(_decodes(row) for row in rest):
            decoding = self.device.decode([self._decode_row(row) for row in rest])
            places |= {row.seq_id: index for index, row in enumerate(rest)}
        elif rest:
            step = self._inputs.stage(SchedulerOutput(tuple(rest)))
            draws = [self._draw(samples[0]) if draws_on_device(samples) else None for samples in step.samples]
            mixed = self.device.mixed(step, draws)
            drawn = [(s[0].seq_id, index) for index, s in enumerate(step.samples) if draws[index] is not None]
            places |= {seq_id: self._config.max_num_seqs + index for seq_id, index in drawn}
        self._ahead = self._launch_ahead(out.rows, places)

        tokens: list[SampledToken] = []
        prompts: dict[int, tuple[TokenLogprobs, ...]] = {}
        if kept and ahead is not None:
            found = ahead.launch.tokens()
            tokens += [_sampled(row.seq_id, found[places[row.seq_id]]) for row in kept]
        if decoding is not None:
            tokens += [_sampled(row.seq_id, token) for row, token in zip(rest, decoding.tokens(), strict=True)]
        if mixed is not None and step is not None:
            tokens += self._mixed_tokens(step, mixed, draws)
            prompts = self._prompt_logprobs(step, mixed)
        return StepResult(tuple(tokens), prompts)

    def _is_same(self, row: ScheduledRow, launched: DecodeRow, out: SchedulerOutput) -> bool:
        """Whether the row that was launched is the one asked for, its keys and values where they are looked for.

        Its earlier blocks may be others by now, of the same contents: where two sequences computed one prefix, the
        prefix cache keeps one.
        """
        if not _decodes(row) or row.start != launched.position:
            return False
        at = row.start // self._config.block_size
        written = launched.block_table[at]
        return row.block_table[at] == written and all(target != written for _, target in out.copies)

    def _launch_ahead(self, rows: Sequence[ScheduledRow], places: dict[int, int]) -> _Ahead | None:
        """Launch the next token of every row that will have one, for all that the CPU knows."""
        next_rows: dict[int, tuple[int, DecodeRow]] = {}
        for row in rows:
            end = row.start + len(row.token_ids)
            if row.seq_id not in places or not self._goes_on(row, end):
                continue
            draw = self._draw(row.samples[0], ahead=1)
            next_row = DecodeRow(end, row.block_table, draw, token_id=-1, place=places[row.seq_id])
            next_rows[row.seq_id] = (len(next_rows), next_row)
        if not next_rows:
            return None
        return _Ahead(next_rows, self.device.decode([row for _, row in next_rows.values()]))

    def _decode_row(self, row: ScheduledRow) -> DecodeRow:
        draw = self._draw(row.samples[0])
        return DecodeRow(row.start, row.block_table, draw, token_id=row.token_ids[0], place=-1)

    def _draw(self, spec: SampleSpec, ahead: int = 0) -> Draw:
        """The sequence's next draw, or the one after `ahead` more that the CPU has not seen."""
        slot = self._slots.of(spec.seq_id) if _is_penalised(spec.params) else -1
        return Draw(spec, len(spec.output_token_ids) + ahead, slot, is_known=not ahead)

    def _goes_on(self, row: ScheduledRow, end: int) -> bool:
        """Whether the token that the row draws will be computed in turn, unless it ends the sequence by what it is."""
        spec, config = row.samples[0], self._config
        drawn = len(spec.output_token_ids) + 1
        ends = drawn == spec.params.max_tokens or end + 1 >= config.max_model_len
        return not ends and len(row.block_table) * config.block_size > end

    def _mixed_tokens(self, step: StagedStep, launch: MixedLaunch, draws: Sequence[Draw | None]) -> list[SampledToken]:
        tokens: list[SampledToken] = []
        if any(draw is not None for draw in draws):
            found = zip(draws, launch.tokens(), strict=True)
            tokens += [_sampled(draw.spec.seq_id, token) for draw, token in found if draw is not None]
        on_cpu = [index for index, draw in enumerate(draws) if draw is None]
        if on_cpu:
            logits = launch.logits()[[step.sample_rows[index] for index in on_cpu]]
            tokens += self._sampler.sample(logits, [step.samples[index] for index in on_cpu])
        return tokens

    def _prompt_logprobs(self, step: StagedStep, launch: MixedLaunch) -> dict[int, tuple[TokenLogprobs, ...]]:
        if not step.prompt_rows:
            return {}
        logits = launch.logits()
        return {
            row.seq_id: self._sampler.prompt_logprobs(
                logits[first : first + len(row.prompt_targets)], row.prompt_targets, row.prompt_logprobs or 0
            )
            for row, first in step.prompt_rows
        }


def _decodes(row: ScheduledRow) -> bool:
    return len(row.token_ids) == 1 and row.prompt_logprobs is None and draws_on_device(row.samples)


def _sampled(seq_id: int, token_id: int) -> SampledToken:
    return SampledToken(seq_id, token_id, error=NOT_FINITE if token_id < 0 else None)

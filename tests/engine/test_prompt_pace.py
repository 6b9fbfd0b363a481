"""Prompts are computed in pieces whose steps do not take long, whatever the machine and the context do."""

from pllm.runtime.engine import Engine
from pllm.runtime.prompt_pace import LONGEST_STEP, PromptPace
from pllm.runtime.sampling_params import SamplingParams
from pllm.runtime.step import ScheduledRow, SchedulerOutput, StepResult

from .fake_model import Run


def row(num_tokens: int) -> ScheduledRow:
    return ScheduledRow(seq_id=0, start=0, token_ids=[1] * num_tokens, block_table=[], samples=())


def test_a_step_that_took_too_long_is_followed_by_a_smaller_one() -> None:
    pace = PromptPace(512)
    assert pace.num_tokens == 512
    pace.note([row(512), row(1)], 4 * LONGEST_STEP)
    assert pace.num_tokens == 128
    pace.note([row(1)] * 64, 9.0)  # nothing of a prompt: it says nothing
    assert pace.num_tokens == 128
    pace.note([row(20)], 0.01)  # it could have been more
    assert pace.num_tokens == 128
    pace.note([row(100), row(28)], 0.9 * LONGEST_STEP)  # as it should be
    assert pace.num_tokens == 128
    for _ in range(20):
        pace.note([row(pace.num_tokens)], 0.01)
    assert pace.num_tokens == 512


def test_it_never_comes_to_nothing() -> None:
    for most in (4, 512):
        pace = PromptPace(most)
        pace.note([row(most)], 1e6)
        assert pace.num_tokens == min(16, most)


class Slow:
    """A model runner on a machine where a token of a prompt takes as long as its context is: on a clock of its own."""

    def __init__(self, runner: object) -> None:
        self._runner = runner
        self.now = 0.0
        self.seconds: list[float] = []

    def execute(self, out: SchedulerOutput) -> StepResult:
        took = sum(len(each.token_ids) * (each.start + len(each.token_ids)) / 8000 for each in out.rows)
        self.now += took
        self.seconds.append(took)
        return self._runner.execute(out)


def test_steps_stay_short_as_the_context_grows_and_say_the_same() -> None:
    prompt = [i % 30 for i in range(240)]
    greedy = SamplingParams(temperature=0, max_tokens=4, ignore_eos=True)
    fast, slow = (Run(max_model_len=256, num_blocks=64, max_num_batched_tokens=64) for _ in range(2))
    machine = Slow(slow.runner)
    slow.engine = Engine(slow.scheduler, machine, clock=lambda: machine.now)
    for run in (fast, slow):
        run.add("a", prompt, greedy)
        run.finish()
    assert slow.tokens("a") == fast.tokens("a")
    assert machine.seconds[1] > LONGEST_STEP  # the first ones teach it
    assert max(machine.seconds[3:]) < 2 * LONGEST_STEP
    assert len(slow.runner.steps) > len(fast.runner.steps)

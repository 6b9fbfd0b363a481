"""The asyncio form: requests come at any time, run together, and can be left, aborted or lost."""

import asyncio
import time
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import pytest

from pllm import AsyncLLM
from pllm.runtime.errors import ContextLengthExceededError, EngineDeadError, QueueFullError
from pllm.runtime.outputs import RequestOutput
from pllm.runtime.sampling_params import SamplingParams

from .fake_model import FakeCore


@pytest.fixture
def llm(artifact: Path) -> Iterator[AsyncLLM]:
    llm = AsyncLLM(str(artifact))
    yield llm
    llm.shutdown()
    assert FakeCore.last.is_closed


async def outputs_of(
    llm: AsyncLLM, prompt: str, request_id: str | None = None, **fields: object
) -> list[RequestOutput]:
    return [output async for output in llm.generate(prompt, SamplingParams(**fields), request_id)]


def test_many_at_once(llm: AsyncLLM) -> None:
    async def run() -> list[list[RequestOutput]]:
        return await asyncio.gather(*(outputs_of(llm, f"prompt {i} 😀", max_tokens=10 + i) for i in range(12)))

    for i, outputs in enumerate(asyncio.run(run())):
        texts = [output.outputs[0].text for output in outputs]
        assert all(later.startswith(earlier) for earlier, later in pairwise(texts))
        assert [output.finished for output in outputs] == [False] * (len(outputs) - 1) + [True]
        assert len(outputs[-1].outputs[0].token_ids) == 10 + i
        assert outputs[-1].prompt == f"prompt {i} 😀"


def test_a_stop_string_ends_it_in_the_engine_too(llm: AsyncLLM) -> None:
    last = asyncio.run(outputs_of(llm, "The quick brown fox", max_tokens=100, stop="brown"))[-1]
    assert (last.outputs[0].text, last.outputs[0].finish_reason) == ("The quick ", "stop")
    assert_idle(llm)


def test_a_stop_string_ends_one_of_two_answers(artifact: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tokens_of: dict[int, int] = {}

    def one_stops(prompt, output, seed: int) -> int:
        tokens_of[seed] = len(output) + 1
        time.sleep(0.001)  # a step takes time, so that the abort arrives before all is done
        return prompt[1] if seed == min(tokens_of) and len(output) > 2 else prompt[0]

    monkeypatch.setattr(FakeCore, "next_token", staticmethod(one_stops))
    llm = AsyncLLM(str(artifact))
    prompt = {"prompt_token_ids": [llm.intake.tokenizer.token_to_id(letter) for letter in "ab"]}

    async def run() -> RequestOutput:
        async for output in llm.generate(prompt, SamplingParams(n=2, max_tokens=120, stop="b", temperature=1.0)):
            last = output
        return last

    answers = sorted(asyncio.run(run()).outputs, key=lambda answer: len(answer.token_ids))
    llm.shutdown()
    assert [answer.finish_reason for answer in answers] == ["stop", "length"]
    assert (answers[0].text, len(answers[1].token_ids)) == ("aaa", 120)
    assert min(tokens_of.values()) < 120, "the engine did not go on with the answer that had ended"


def test_leaving_the_loop_ends_the_request(llm: AsyncLLM) -> None:
    async def run() -> None:
        answers = llm.generate("abc", SamplingParams(max_tokens=100))
        async for _ in answers:
            break
        await answers.aclose()

    asyncio.run(run())
    assert_idle(llm)


def test_abort_from_elsewhere(llm: AsyncLLM, monkeypatch: pytest.MonkeyPatch) -> None:
    async def run() -> RequestOutput:
        last = None
        async for output in llm.generate("abc", SamplingParams(max_tokens=100, n=2), "mine"):
            last = output
            if len(output.outputs[0].token_ids) < 90:
                llm.abort("mine")
        return last

    last = asyncio.run(run())
    assert last.finished
    assert {answer.finish_reason for answer in last.outputs} <= {"abort", "length"}
    assert_idle(llm)


def test_what_cannot_be_served_is_refused(llm: AsyncLLM) -> None:
    with pytest.raises(ContextLengthExceededError):
        asyncio.run(outputs_of(llm, "word " * 200))


def test_a_full_queue(artifact: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(FakeCore, "config", {"max_waiting": 0, "max_num_seqs": 1})
    llm = AsyncLLM(str(artifact))

    async def run() -> list[object]:
        return await asyncio.gather(*(outputs_of(llm, "abc", max_tokens=50) for _ in range(8)), return_exceptions=True)

    results = asyncio.run(run())
    assert any(isinstance(result, QueueFullError) for result in results)
    assert all(isinstance(result, QueueFullError) or result[-1].finished for result in results)
    llm.shutdown()


def test_a_dead_engine_is_heard_of_by_all(artifact: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(prompt, output, seed: int) -> int:
        if len(output) == 5:
            raise ArithmeticError("no numbers")
        return 65

    monkeypatch.setattr(FakeCore, "next_token", staticmethod(fails))
    llm = AsyncLLM(str(artifact))

    async def run() -> list[object]:
        return await asyncio.gather(*(outputs_of(llm, "abc", max_tokens=50) for _ in range(8)), return_exceptions=True)

    for result in asyncio.run(run()):
        assert isinstance(result, EngineDeadError)
        assert "ArithmeticError: no numbers" in str(result)
    with pytest.raises(EngineDeadError):
        asyncio.run(outputs_of(llm, "late"))
    llm.shutdown()


def test_shutdown_ends_what_runs(artifact: Path) -> None:
    llm = AsyncLLM(str(artifact))

    async def run() -> None:
        async for _ in llm.generate("abc", SamplingParams(max_tokens=100)):
            await asyncio.to_thread(llm.shutdown)
            await asyncio.sleep(0)

    try:
        asyncio.run(run())
    except EngineDeadError as error:
        assert "shut down" in str(error)  # unless all 100 tokens had come before
    assert FakeCore.last.is_closed


def assert_idle(llm: AsyncLLM) -> None:
    """Ask through the queue of commands, so that what was sent before has been obeyed."""
    asyncio.run(outputs_of(llm, "x", max_tokens=1))
    stats = llm._core.engine.stats()
    assert (stats.num_running, stats.num_waiting, stats.kv_blocks_used) == (0, 0, 0)

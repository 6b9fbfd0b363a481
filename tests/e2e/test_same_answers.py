"""One request says the same however it is served: alone or beside others, cached or not, streamed or whole."""

import json
import socket
import threading
from pathlib import Path

import httpx
import pytest

from pllm import LLM, RequestOutput, SamplingParams

STORY = "Once upon a time, there was a young fox named Mia who lived by the sea. Mia loved to sing songs. "
PROMPTS = [*(3 * STORY + end for end in ("One day", "从前有", "Then 17 + 25", "😀 Max")), 6 * STORY]
PARAMS = [
    SamplingParams(temperature=0, max_tokens=40, ignore_eos=True),
    SamplingParams(seed=1, max_tokens=40, ignore_eos=True),
    SamplingParams(seed=2, max_tokens=40, ignore_eos=True, top_p=0.9, top_k=50, min_p=0.01),
    SamplingParams(seed=3, max_tokens=40, ignore_eos=True, repetition_penalty=1.2, presence_penalty=0.5),
    SamplingParams(temperature=0, max_tokens=40, ignore_eos=True, logprobs=2, stop="Mia"),
]


def token_ids(outputs: list[RequestOutput]) -> list[list[int]]:
    return [output.outputs[0].token_ids for output in outputs]


@pytest.fixture(scope="module")
def alone(artifact: Path) -> list[RequestOutput]:
    """What each says with nobody beside it, and nothing remembered."""
    with LLM(str(artifact), enable_prefix_caching=False) as llm:
        return [llm.generate(prompt, params, use_tqdm=False)[0] for prompt, params in zip(PROMPTS, PARAMS, strict=True)]


def test_beside_others(artifact: Path, alone: list[RequestOutput]) -> None:
    with LLM(str(artifact), enable_prefix_caching=False) as llm:
        assert token_ids(llm.generate(PROMPTS, PARAMS, use_tqdm=False)) == token_ids(alone)


def test_where_others_may_run_one_at_a_time_only(artifact: Path, alone: list[RequestOutput]) -> None:
    with LLM(str(artifact), max_num_seqs=1, threads=1) as llm:
        assert token_ids(llm.generate(PROMPTS, PARAMS, use_tqdm=False)) == token_ids(alone)


def test_with_a_prefix_that_is_found(artifact: Path, alone: list[RequestOutput]) -> None:
    with LLM(str(artifact)) as llm:
        llm.generate(PROMPTS, PARAMS, use_tqdm=False)
        again = llm.generate(PROMPTS, PARAMS, use_tqdm=False)
    assert all(output.num_cached_tokens and output.num_cached_tokens >= 48 for output in again)
    assert token_ids(again) == token_ids(alone)
    assert again[-1].outputs[0].logprobs == alone[-1].outputs[0].logprobs


def test_the_first_of_several_answers(llm: LLM, alone: list[RequestOutput]) -> None:
    several = SamplingParams(n=4, seed=1, max_tokens=40, ignore_eos=True)
    (output,) = llm.generate(PROMPTS[1], several, use_tqdm=False)
    assert output.outputs[0].token_ids == alone[1].outputs[0].token_ids
    assert len({tuple(answer.token_ids) for answer in output.outputs}) == 4


def test_streamed(llm: LLM, alone: list[RequestOutput]) -> None:
    for prompt, params, expected in zip(PROMPTS, PARAMS, alone, strict=True):
        assert "".join(delta.text for delta in llm.stream(prompt, params)) == expected.outputs[0].text


def test_by_the_server(server, alone: list[RequestOutput]) -> None:
    for prompt, params, expected in zip(PROMPTS, PARAMS, alone, strict=True):
        body = {
            "prompt": prompt,
            "max_tokens": 40,
            "ignore_eos": True,
            "temperature": params.temperature,
            "seed": params.seed,
            "top_p": params.top_p,
            "top_k": params.top_k,
            "min_p": params.min_p,
            "repetition_penalty": params.repetition_penalty,
            "presence_penalty": params.presence_penalty,
            "stop": list(params.stop),
        }
        answer = httpx.post(f"{server.url}/v1/completions", json=body, timeout=30).raise_for_status().json()
        assert answer["choices"][0]["text"] == expected.outputs[0].text
        assert answer["choices"][0]["finish_reason"] == expected.outputs[0].finish_reason


def test_while_others_come_and_leave(server, alone: list[RequestOutput]) -> None:
    """Large prompts beside it, whose clients hang up amid them, and amid their answers."""
    done = threading.Event()

    def restless() -> None:
        number = 0
        while not done.is_set():
            number += 1
            prompt = [300 + (7919 * i + 31 * number) % 900 for i in range(1500)]
            body = json.dumps({"prompt": prompt, "max_tokens": 400, "ignore_eos": True, "stream": True}).encode()
            with socket.create_connection(("127.0.0.1", server.port), timeout=30) as connection:
                head = "POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
                connection.sendall(f"{head}content-length: {len(body)}\r\n\r\n".encode() + body)
                if number % 2:
                    connection.recv(1024)  # its first token has come
                else:
                    done.wait(0.02 * (number % 7))

    others = [threading.Thread(target=restless) for _ in range(4)]
    for other in others:
        other.start()
    try:
        for prompt, expected in ((PROMPTS[0], alone[0]), (PROMPTS[0], alone[0])):
            body = {"prompt": prompt, "max_tokens": 40, "ignore_eos": True, "temperature": 0, "cache_salt": "own"}
            answer = httpx.post(f"{server.url}/v1/completions", json=body, timeout=60).raise_for_status().json()
            assert answer["choices"][0]["text"] == expected.outputs[0].text
    finally:
        done.set()
        for other in others:
            other.join()
    server.wait_for_usage(lambda used: used == 0)

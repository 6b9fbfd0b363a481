"""The quickstart model from recipe to answer: everything real."""

import json
import re
import socket
import subprocess
import sys
from pathlib import Path

import httpx
import pytest

from pllm import LLM, SamplingParams
from pllm.runtime.artifact import Artifact

from .conftest import lean_environment

ROOT = Path(__file__).parents[2]
CHECKPOINT = ROOT / "recipes" / "quickstart"
QUESTION = [{"role": "user", "content": "What is 17 + 25?"}]
ANSWER = "17 + 25 = 42."
DRILLS = (
    "What is 17 + 25?",
    "What is 81 - 36?",
    "What is 7 \u00d7 8?",
    "Count from 3 to 12.",
    "Spell the word garden.",
    "Reverse the word lemon.",
    "How many letters are in the word window?",
    "Which is larger, 48 or 84?",
    "What is the capital of France?",
    "What day comes after Tuesday?",
    "你好",
    "今天天气很好、世界",
)
NEAR_TIE = 2e-3
"""Between the two largest logits: below it, float32 arithmetic in another order may prefer the other token."""


def test_it_answers(llm: LLM) -> None:
    (output,) = llm.chat(QUESTION, SamplingParams(temperature=0, max_tokens=32), use_tqdm=False)
    assert output.outputs[0].text == ANSWER
    assert output.outputs[0].finish_reason == "stop"


def test_a_batch_has_the_greedy_tokens_of_transformers(llm: LLM) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    reference = AutoModelForCausalLM.from_pretrained(CHECKPOINT, dtype=torch.float32, attn_implementation="eager")
    conversations = [[{"role": "user", "content": drill}] for drill in DRILLS]
    params = SamplingParams(temperature=0, max_tokens=48)
    outputs = llm.chat(conversations, params, use_tqdm=False)
    outputs += llm.generate(["Once upon a time", "从前有一座山", "今天天气很好"], params, use_tqdm=False)
    compared = 0
    for output in outputs:
        prompt, ours = list(output.prompt_token_ids), list(output.outputs[0].token_ids)
        with torch.no_grad():
            theirs = reference.generate(torch.tensor([prompt]), do_sample=False, max_new_tokens=48)[0, len(prompt) :]
            logits = reference(torch.tensor([[*prompt, *theirs.tolist()]])).logits[0, len(prompt) - 1 :]
        for ours_next, theirs_next, row in zip(ours, theirs.tolist(), logits, strict=False):
            best = row.topk(2).values
            if best[0] - best[1] < NEAR_TIE:
                break
            assert ours_next == theirs_next, output.prompt
            compared += 1
        else:
            assert len(ours) == len(theirs), output.prompt
    assert compared > 100


def test_a_pool_for_little_more_than_one_sequence_gives_the_same_tokens(artifact: Path, llm: LLM) -> None:
    manifest = json.loads((artifact / "manifest.json").read_text(encoding="utf-8"))
    block_size, ledger = manifest["kv"]["block_size"], manifest["memory"]
    blocks = manifest["engine"]["max_model_len"] // block_size + 2
    memory = ledger["weights"] + ledger["activations"] + ledger["runtime"] + blocks * ledger["kv_block"]
    # Prompts that fit side by side, and answers that then do not.
    prompts = [[(7 * i + 31 * request) % 1200 for i in range(100)] for request in range(16)]
    params = SamplingParams(temperature=0, max_tokens=64, ignore_eos=True)
    assert blocks * block_size < 16 * (100 + 64)
    expected = [output.outputs[0].token_ids for output in llm.generate(prompts, params, use_tqdm=False)]
    with LLM(model=str(artifact), memory=memory) as small:
        actual = [output.outputs[0].token_ids for output in small.generate(prompts, params, use_tqdm=False)]
        stats = small.get_metrics()
    assert stats.kv_blocks_total == blocks
    assert stats.num_preemptions > 0
    assert actual == expected


class TestServer:
    def test_chat(self, server) -> None:
        body = {"model": "quickstart", "messages": QUESTION, "temperature": 0}
        reply = httpx.post(f"{server.url}/v1/chat/completions", json=body, timeout=30).raise_for_status().json()
        assert reply["choices"][0]["message"]["content"] == ANSWER
        assert reply["choices"][0]["finish_reason"] == "stop"

    def test_a_chat_stream(self, server) -> None:
        body = {"model": "quickstart", "messages": QUESTION, "temperature": 0, "stream": True}
        with httpx.stream("POST", f"{server.url}/v1/chat/completions", json=body, timeout=30) as reply:
            lines = [line.removeprefix("data: ") for line in reply.iter_lines() if line]
        assert lines[-1] == "[DONE]"
        deltas = [json.loads(line)["choices"][0]["delta"].get("content") or "" for line in lines[:-1]]
        assert "".join(deltas) == ANSWER

    def test_a_long_answer_comes_in_pieces(self, server) -> None:
        """A short one may be complete before the server's process has its turn."""
        body = {"prompt": "Once", "max_tokens": 1500, "ignore_eos": True, "temperature": 0, "stream": True}
        with httpx.stream("POST", f"{server.url}/v1/completions", json=body, timeout=30) as reply:
            pieces = [line for line in reply.iter_lines() if line.startswith("data: {")]
        assert len(pieces) > 10

    def test_completions(self, server, llm: LLM) -> None:
        prompt = "Once upon a time"
        body = {"model": "quickstart", "prompt": prompt, "temperature": 0, "max_tokens": 24}
        reply = httpx.post(f"{server.url}/v1/completions", json=body, timeout=30).raise_for_status().json()
        (output,) = llm.generate(prompt, SamplingParams(temperature=0, max_tokens=24), use_tqdm=False)
        assert reply["choices"][0]["text"] == output.outputs[0].text != ""
        assert reply["usage"]["completion_tokens"] == 24

    @pytest.mark.parametrize("stream", [True, False])
    def test_a_client_that_goes_away_frees_its_blocks(self, server, stream: bool) -> None:
        body = {"prompt": "Once", "max_tokens": 2000, "ignore_eos": True, "n": 8, "stream": stream}
        text = json.dumps(body).encode()
        before = server.metric("generation_tokens_total")
        with socket.create_connection(("127.0.0.1", server.port)) as connection:
            head = "POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: "
            connection.sendall(f"{head}{len(text)}\r\n\r\n".encode() + text)
            server.wait_for_usage(lambda usage: usage > 0)
        server.wait_for_usage(lambda usage: usage == 0)
        assert server.metric("generation_tokens_total") - before < 8 * 2000, "it ended before its client went"

    def test_no_process_of_it_holds_pytorch(self, server, artifact: Path) -> None:
        """But for its C library, where the program calls it."""
        unwanted = "libtorch" if Artifact.read(artifact).manifest.requires.torch is None else "libtorch_python"
        for process in (server.engine.pid, server.process.pid):
            maps = Path(f"/proc/{process}/maps").read_text(encoding="utf-8")
            assert unwanted not in maps
        assert "model.so" in Path(f"/proc/{server.engine.pid}/maps").read_text(encoding="utf-8")

    def test_it_starts_no_program_but_its_engine_and_reads_no_pickle(self, server) -> None:
        httpx.post(f"{server.url}/v1/completions", json={"prompt": "1 2 3", "n": 2}, timeout=30).raise_for_status()
        (line,) = server.audit.read_text(encoding="utf-8").splitlines()
        assert line.startswith("subprocess.Popen")
        assert "pllm.runtime.engine_process" in line


def run_lean(script: str, audit: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", script],
        env=lean_environment(audit),
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )


def test_the_lean_environment_is_one(audit: Path) -> None:
    """What the tests around it show is worth what this one shows."""
    script = """
import collections, pickle, subprocess
from importlib import import_module
from importlib.util import find_spec
for name in ("torch", "transformers", "sympy", "triton", "pllm.build", "setuptools"):
    assert find_spec(name), name
    try:
        import_module(name)
    except ImportError as error:
        print(error)
pickle.loads(pickle.dumps(collections.Counter))
for program in ("g++", "cc", "ld"):
    try:
        subprocess.run([program])
    except FileNotFoundError:
        print("no", program)
"""
    done = run_lean(script, audit)
    assert done.returncode == 0, done.stderr
    names = ("torch", "transformers", "sympy", "triton", "pllm.build", "setuptools")
    assert done.stdout.splitlines() == [*(f"{name} is blocked here" for name in names), "no g++", "no cc", "no ld"]
    written = [line.split()[0] for line in audit.read_text(encoding="utf-8").splitlines()]
    assert written == ["pickle.find_class"] + 3 * ["subprocess.Popen"]


def test_the_library_answers_where_nothing_of_the_build_can_be_imported(artifact: Path, audit: Path) -> None:
    script = f"""
import sys
from pllm import LLM, SamplingParams
if __name__ == "__main__":
    with LLM(model={str(artifact)!r}) as llm:
        output = llm.chat({QUESTION!r}, SamplingParams(temperature=0, max_tokens=32), use_tqdm=False)[0]
    print(output.outputs[0].text)
    print(*sorted({{"torch", "transformers", "sympy", "triton", "pllm.build"}} & set(sys.modules)))
"""
    done = run_lean(script, audit)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [ANSWER, ""]
    assert audit.read_text(encoding="utf-8") == ""


def _files(artifact: Path) -> list[Path]:
    return [path for path in sorted(artifact.rglob("*")) if path.is_file()]


@pytest.mark.parametrize("place", [str(ROOT), "/tmp/", "torchinductor_"])
def test_no_file_of_it_names_a_place_of_the_build(artifact: Path, place: str) -> None:
    found = [str(path.relative_to(artifact)) for path in _files(artifact) if place.encode() in path.read_bytes()]
    assert found == []


def test_nothing_in_it_is_a_pickle(artifact: Path) -> None:
    header = re.compile(rb"\A\x80[\x02-\x05]|cpickle|c__builtin__|PROTO\x80")
    for path in _files(artifact):
        assert path.suffix not in {".pkl", ".pickle", ".pt", ".pt2", ".pth", ".bin", ".zip"}, path
        data = path.read_bytes()
        assert not header.search(data), path
        assert not data.startswith(b"PK\x03\x04"), path

"""A recipe instead of an artifact: built once, for the library and for the server alike."""

from pathlib import Path

import httpx
import pytest

from pllm import LLM, SamplingParams
from pllm.cli import main

from .conftest import ROOT, Server
from .test_quickstart import ANSWER, QUESTION


@pytest.mark.nightly
def test_a_recipe_is_built_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PLLM_CACHE", str(tmp_path / "cache"))
    recipe = ROOT / "recipes" / "quickstart.toml"
    with LLM(model=str(recipe)) as llm:
        (output,) = llm.chat(QUESTION, SamplingParams(temperature=0, max_tokens=32), use_tqdm=False)
    assert output.outputs[0].text == ANSWER
    shown = capfd.readouterr()
    assert "✓ compile" in shown.err, "the build's progress is shown"
    assert shown.out == ""

    server = Server(recipe, tmp_path / "audit")  # where nothing could be built
    try:
        body = {"model": "quickstart", "messages": QUESTION, "temperature": 0}
        reply = httpx.post(f"{server.url}/v1/chat/completions", json=body, timeout=30).raise_for_status().json()
        assert reply["choices"][0]["message"]["content"] == ANSWER
    finally:
        server.process.terminate()
        server.process.wait(30)
    assert main(["cache"]) == 0
    assert "quickstart.toml" in capfd.readouterr().out

"""A model that cannot be built is refused in one line that says why."""

import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from tests.build.graphs import FAMILIES

from .artifacts import recipe_of

DYNAMIC_ROPE = {"rope_parameters": {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10000.0}}
CHUNKED = {"num_local_experts": 4, "intermediate_size_mlp": 96, "moe_layers": []}


@pytest.mark.parametrize(
    ("config_class", "changes", "reason"),
    [
        ("StableLmConfig", {}, "StableLmForCausalLM cannot be traced by torch.export: its layers do not hand "),
        ("RecurrentGemmaConfig", {"lru_width": 64}, "RecurrentGemmaForCausalLM cannot be built: it has layers of the "),
        ("BloomConfig", {"n_layer": 2, "n_head": 4}, "BloomForCausalLM cannot be built: 0 of its 2 layers attend "),
        ("LlamaConfig", DYNAMIC_ROPE, "LlamaForCausalLM cannot be built: its RoPE scaling 'dynamic' goes by "),
        ("Llama4TextConfig", CHUNKED, "Llama4ForCausalLM cannot be built: it has layers of the kind chunked_attention"),
    ],
    ids=["no arguments", "recurrent", "ALiBi", "dynamic RoPE", "chunked"],
)
def test_a_model_that_cannot_be_served(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, config_class: str, changes: Mapping[str, Any], reason: str
) -> None:
    monkeypatch.setitem(FAMILIES, "untraceable", (config_class, changes))
    recipe = recipe_of("untraceable", tmp_path)
    target = tmp_path / "out" / "untraceable"
    done = subprocess.run(
        [sys.executable, "-m", "pllm", "build", str(recipe), "--output", str(target)],
        env={**os.environ, "COLUMNS": "200"},
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert done.returncode == 1
    assert done.stdout == ""
    assert "Traceback" not in done.stderr
    last = done.stderr.splitlines()[-1]
    assert last.startswith(f"pllm: error: {reason}")
    assert len(last) > len(f"pllm: error: {reason}")
    assert done.stderr.count("pllm: error: ") == 1
    assert [path.name for path in target.parent.iterdir()] == [".untraceable.lock"]

"""A checkpoint directory small enough to write by hand, and a user cache of the test's own."""

import json
from pathlib import Path
from typing import Any

import pytest

from pllm.runtime.safetensors_file import TensorSpec, write_safetensors

CONFIG: dict[str, Any] = {
    "model_type": "qwen3",
    "architectures": ["Qwen3ForCausalLM"],
    "hidden_size": 8,
    "intermediate_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 4,
    "vocab_size": 300,
    "max_position_embeddings": 1024,
    "tie_word_embeddings": True,
}


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("PLLM_CACHE", str(folder))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_HOME", str(folder / "hf"))
    return folder


def write_checkpoint(folder: Path, **changes: Any) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(CONFIG | changes))
    (folder / "tokenizer.json").write_text("{}")
    (folder / "generation_config.json").write_text('{"eos_token_id": 2}')
    write_safetensors(folder / "model.safetensors", [TensorSpec("w", "BF16", (3, 5))], lambda _: bytes(range(30)))
    return folder


@pytest.fixture
def checkpoint_path(tmp_path: Path) -> Path:
    return write_checkpoint(tmp_path / "model")

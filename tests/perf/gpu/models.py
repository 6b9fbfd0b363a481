"""The models that are measured on a GPU: real configurations with random weights, as recipes; and a tiny one."""

from pathlib import Path

from pllm.build.toml_text import toml_text

__all__ = ["MODELS", "recipe_of"]

_QWEN3 = {
    "architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3", "hidden_act": "silu", "head_dim": 128,
    "num_key_value_heads": 8, "max_position_embeddings": 40960, "rope_theta": 1000000.0, "rms_norm_eps": 1e-6,
    "attention_bias": False,
}  # fmt: skip
MODELS: dict[str, dict[str, object]] = {
    "0.6b": _QWEN3 | {
        "hidden_size": 1024, "intermediate_size": 3072, "num_hidden_layers": 28, "num_attention_heads": 16,
        "vocab_size": 151936, "tie_word_embeddings": True,
    },
    "1b": {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_act": "silu", "head_dim": 64,
        "num_key_value_heads": 8, "max_position_embeddings": 131072, "rope_theta": 500000.0, "rms_norm_eps": 1e-5,
        "hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16, "num_attention_heads": 32,
        "vocab_size": 128256, "tie_word_embeddings": True,
    },
    "8b": _QWEN3 | {
        "hidden_size": 4096, "intermediate_size": 12288, "num_hidden_layers": 36, "num_attention_heads": 32,
        "vocab_size": 151936, "tie_word_embeddings": False,
    },
    "tiny": _QWEN3 | {
        "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4, "head_dim": 16,
        "num_key_value_heads": 2, "vocab_size": 512, "max_position_embeddings": 512, "tie_word_embeddings": True,
    },
}  # fmt: skip


def recipe_of(model: str, folder: Path) -> Path:
    """A recipe on the disk. 8B is certified on few tokens: its reference in float32 takes the time."""
    tiny = model == "tiny"
    document = {
        "model": {
            "source": f"{model}-random", "weights": "random", "tokenizer_size": 300 if tiny else 32000,
            "config": MODELS[model],
        },
        "device": {"kind": "cuda"},
        "engine": {
            "max_model_len": 256 if tiny else 8192, "max_num_seqs": 8 if tiny else 256,
            "max_num_batched_tokens": 64 if tiny else 8192,
        },
        "verify": {"golden_prompts": 1 if model == "8b" else 2, "golden_tokens": 2 if model == "8b" else 4},
    }  # fmt: skip
    path = folder / f"{model}.toml"
    path.write_text(toml_text(document))
    return path

"""The network, and the folder that it is exported to."""

import shutil
import tempfile
from pathlib import Path
from typing import Any

import torch
from transformers import GenerationConfig, PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

from conversations.markup import END_OF_TEXT, IM_END
from training.tokenizer import MAX_POSITIONS, token_id

__all__ = ["build_model", "write_export"]


def build_model(tokenizer: PreTrainedTokenizerFast) -> Qwen3ForCausalLM:
    """The untrained network: grouped-query attention, tied embeddings."""
    config = Qwen3Config(
        vocab_size=len(tokenizer),
        hidden_size=256,
        intermediate_size=640,
        num_hidden_layers=5,
        num_attention_heads=6,
        num_key_value_heads=2,
        head_dim=64,
        max_position_embeddings=MAX_POSITIONS,
        rope_parameters={"rope_type": "default", "rope_theta": 10_000.0},
        rms_norm_eps=1e-6,
        tie_word_embeddings=True,
        attention_bias=False,
        bos_token_id=None,
        eos_token_id=token_id(tokenizer, IM_END),
        pad_token_id=token_id(tokenizer, END_OF_TEXT),
    )
    return Qwen3ForCausalLM(config)


def write_export(model: Qwen3ForCausalLM, tokenizer: PreTrainedTokenizerFast, output: Path) -> None:
    """Writes the model in bfloat16 and the tokenizer, replacing files one by one so that readers never see halves."""
    rounded: Any = Qwen3ForCausalLM(model.config)
    rounded.load_state_dict(model.state_dict())
    rounded.to(torch.bfloat16)
    ends = [token_id(tokenizer, token) for token in (IM_END, END_OF_TEXT)]
    settings = {"do_sample": False, "eos_token_id": ends, "pad_token_id": ends[1]}
    rounded.generation_config = GenerationConfig.from_dict(settings)
    output.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=output.parent) as temporary:
        rounded.save_pretrained(temporary)
        for loading_detail in ("is_local", "local_files_only"):
            tokenizer.init_kwargs.pop(loading_detail, None)
        tokenizer.save_pretrained(temporary)
        for path in sorted(Path(temporary).iterdir()):
            shutil.copyfile(path, output / f".{path.name}.new")
            (output / f".{path.name}.new").replace(output / path.name)

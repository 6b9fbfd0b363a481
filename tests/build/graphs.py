"""Tiny models of every kind, and their traced graphs run eagerly over a paged cache."""

from collections.abc import Mapping, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any

import torch
import transformers
from tokenizers import Tokenizer, models
from torch.fx import Interpreter, Node

from pllm.build.checkpoint import Checkpoint
from pllm.build.export import paged_attention, trace
from pllm.build.model_source import ModelWeights, skeleton
from pllm.build.quantize import materialise
from pllm.build.traced import Traced
from pllm.kernels import reference
from pllm.runtime.manifest import KvInfo

BLOCK_SIZE = 16
VOCABULARY = 128
WINDOW = 8  # smaller than a block and than all prompts but the shortest

SIZES: Mapping[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 256,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 10000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
MIXED = ["sliding_attention", "full_attention"]
FAMILIES: Mapping[str, tuple[str, Mapping[str, Any]]] = {
    "llama": ("LlamaConfig", {"rope_parameters": LLAMA3_ROPE}),
    "qwen2": ("Qwen2Config", {}),
    "qwen3": ("Qwen3Config", {"tie_word_embeddings": True}),
    "mistral": ("MistralConfig", {"sliding_window": WINDOW}),
    "gemma2": ("Gemma2Config", {"sliding_window": WINDOW, "layer_types": MIXED, "query_pre_attn_scalar": 16}),
    "gemma3_text": ("Gemma3TextConfig", {"sliding_window": WINDOW, "layer_types": MIXED, "query_pre_attn_scalar": 16}),
    "phi3": ("Phi3Config", {}),
    "olmo2": ("Olmo2Config", {}),
    "granite": (
        "GraniteConfig",
        {"embedding_multiplier": 3.0, "logits_scaling": 2.0, "residual_multiplier": 0.5, "attention_multiplier": 0.2},
    ),
    "smollm3": ("SmolLM3Config", {"num_hidden_layers": 4, "no_rope_layers": [1, 1, 1, 0]}),
    "mixtral": ("MixtralConfig", {"num_local_experts": 4, "num_experts_per_tok": 2}),
    "qwen3_moe": ("Qwen3MoeConfig", {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 48}),
    "gpt_oss": (
        "GptOssConfig",
        {"sliding_window": WINDOW, "layer_types": MIXED, "num_local_experts": 4, "num_experts_per_tok": 2},
    ),
}


def checkpoint_of(family: str, directory: Path) -> Checkpoint:
    """A checkpoint with seeded random weights, drawn wide enough that the greedy tokens vary."""
    config_class, changes = FAMILIES[family]
    config = getattr(transformers, config_class)(**{**SIZES, **changes})
    torch.manual_seed(sum(map(ord, family)))
    model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            is_scale = "norm" in name
            parameter.copy_(parameter + 0.1 * torch.randn_like(parameter) if is_scale else _draw(name, parameter))
    model.save_pretrained(directory)
    words = {f"w{i}": i for i in range(VOCABULARY)}
    Tokenizer(models.WordLevel(words, unk_token="w0")).save(str(directory / "tokenizer.json"))
    (directory / "tokenizer_config.json").write_text('{"tokenizer_class": "PreTrainedTokenizerFast"}')
    return Checkpoint(directory, label=family)


def _draw(name: str, parameter: torch.Tensor) -> torch.Tensor:
    # An embedding outweighed by what the layers add: a model whose head shares it would repeat its last token.
    scale = 0.03 if "embed_tokens" in name else 0.15 if parameter.ndim > 1 else 0.5
    return torch.randn_like(parameter) * scale


def traced_of(checkpoint: Checkpoint, kv_dtype: str = "float32") -> tuple[Traced, KvInfo]:
    config = transformers.AutoConfig.from_pretrained(checkpoint.directory)
    kv = KvInfo(
        dtype=kv_dtype,
        num_layers=config.num_hidden_layers,
        num_kv_heads=config.num_key_value_heads,
        block_size=BLOCK_SIZE,
        head_dim=getattr(config, "head_dim", None) or SIZES["head_dim"],
    )
    return trace(skeleton(config, paged_attention), kv), kv


class _Eager(Interpreter):
    """The graph by torch's own kernels and our specifications. The graph's attention has transformers' layout of
    queries, keys and values, ``[1, heads, T, head_dim]``; the specification has ``[T, heads, head_dim]``."""

    def call_function(self, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if target is torch.ops.pllm.paged_attention.default:
            heads = [tensor[0].transpose(0, 1) for tensor in args[:3]]
            return reference.paged_attention(*heads, *args[3:], **kwargs)[None]
        return super().call_function(target, args, kwargs)


class PagedModel:
    """A traced graph with its constants and a pool of its own, whose blocks are handed out in a scattered order."""

    def __init__(self, traced: Traced, kv: KvInfo, checkpoint: Checkpoint, num_blocks: int = 32) -> None:
        self._graph = _Eager(traced.program.graph_module)
        self._inputs = [node for node in traced.graph.nodes if node.op == "placeholder"]
        config = transformers.AutoConfig.from_pretrained(checkpoint.directory)
        weights = ModelWeights(skeleton(config, paged_attention), checkpoint)
        self._constants = {name: materialise(source, weights) for name, source in traced.sources.items()}
        # What was never written must not be read.
        self._pool = torch.full((num_blocks, *kv.block_shape), 7, dtype=getattr(torch, kv.dtype))
        self._free = torch.randperm(num_blocks, generator=torch.Generator().manual_seed(1)).tolist()
        self._tables: dict[int, list[int]] = {}
        self._lengths: dict[int, int] = {}

    def step(self, rows: Mapping[int, Sequence[int]], wanted: Sequence[int] | None = None) -> torch.Tensor:
        """New tokens of some sequences; the logits after each one's last, ``[len(rows), V]``, or after the ``wanted``
        of the step's tokens."""
        starts = {seq: self._lengths.get(seq, 0) for seq in rows}
        for seq, tokens in rows.items():
            self._lengths[seq] = starts[seq] + len(tokens)
            table = self._tables.setdefault(seq, [])
            while len(table) * BLOCK_SIZE < self._lengths[seq]:
                table.append(self._free.pop())
        width = max(len(self._tables[seq]) for seq in rows)
        boundaries = [0, *accumulate(len(tokens) for tokens in rows.values())]
        inputs = {
            "input_ids": torch.tensor([token for tokens in rows.values() for token in tokens]),
            "positions": torch.cat([torch.arange(starts[seq], self._lengths[seq]) for seq in rows]),
            "block_table": torch.tensor(
                [self._tables[seq] + [0] * (width - len(self._tables[seq])) for seq in rows], dtype=torch.int32
            ),
            "query_start": torch.tensor(boundaries, dtype=torch.int32),
            "context_len": torch.tensor([self._lengths[seq] for seq in rows], dtype=torch.int32),
            "logits_index": torch.tensor(boundaries[1:]) - 1 if wanted is None else torch.tensor(wanted),
            "kv": self._pool,
        }
        logits = self.forward(inputs)
        assert logits.shape == (len(rows if wanted is None else wanted), VOCABULARY)
        return logits

    def forward(self, inputs: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """The graph over whatever pool and rows the inputs name."""
        with torch.no_grad():
            (logits,) = self._graph.run(*(self._argument(node, inputs) for node in self._inputs))
        return logits

    def _argument(self, node: Node, inputs: Mapping[str, torch.Tensor]) -> torch.Tensor:
        return self._constants[node.name] if node.name in self._constants else inputs[node.name]

"""A checkpoint of the Qwen3 family as llama.cpp reads it: GGUF, no vocabulary.

    python -m peers.llama_cpp_checkpoint CHECKPOINT TARGET f32|q8_0|q4_0

Prompts are token ids, so the file has no tokenizer: llama.cpp is spared reading one. Quantised files are made from the
one in float32 by llama.cpp itself, the embeddings (which are the head too) in the same form as everything else.
"""

import ctypes
import json
import struct
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from gguf import MODEL_ARCH, GGUFWriter, LlamaFileType, get_tensor_name_map

_WIDE = {"BF16": np.uint16, "F32": np.float32, "F16": np.float16}


def tensors(checkpoint: Path) -> Iterator[tuple[str, Any]]:
    """The weights by their names in the checkpoint, as float32."""
    for shard in sorted(checkpoint.glob("*.safetensors")):
        with shard.open("rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            header = json.loads(file.read(length))
        data = np.memmap(shard, np.uint8, "r", offset=8 + length)
        for name, entry in header.items():
            if name != "__metadata__":
                start, end = entry["data_offsets"]
                values = data[start:end].view(_WIDE[entry["dtype"]]).reshape(entry["shape"])
                if entry["dtype"] == "BF16":
                    values = (values.astype(np.uint32) << 16).view(np.float32)
                yield name, values.astype(np.float32, copy=False)


def write(checkpoint: Path, target: Path) -> None:
    """Write ``target``, all of it or nothing."""
    config = json.loads((checkpoint / "config.json").read_text(encoding="utf-8"))
    if config["model_type"] != "qwen3":
        raise SystemExit(f"only the Qwen3 family is converted for llama.cpp, not {config['model_type']}")
    theta = config.get("rope_theta") or config.get("rope_parameters", {}).get("rope_theta")
    if theta is None:
        raise SystemExit("config.json names no rope_theta")
    layers = config["num_hidden_layers"]
    names = get_tensor_name_map(MODEL_ARCH.QWEN3, layers)
    partial = target.with_name(target.name + ".partial")
    writer = GGUFWriter(partial, "qwen3")
    writer.add_file_type(LlamaFileType.ALL_F32)
    writer.add_block_count(layers)
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_key_length(config["head_dim"])
    writer.add_value_length(config["head_dim"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_rope_freq_base(theta)
    writer.add_vocab_size(config["vocab_size"])
    writer.add_tokenizer_model("none")
    for name, values in tensors(checkpoint):
        translated = names.get_name(name, try_suffixes=(".weight", ".bias"))
        if translated is None:
            raise SystemExit(f"llama.cpp has no name for {name}")
        writer.add_tensor(translated, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    partial.replace(target)


def quantize(source: Path, target: Path, file_type: str) -> None:
    """Write ``target`` from a file in float32, all of it or nothing."""
    import llama_cpp

    params = llama_cpp.llama_model_quantize_default_params()
    params.ftype = {"q8_0": llama_cpp.LLAMA_FTYPE_MOSTLY_Q8_0, "q4_0": llama_cpp.LLAMA_FTYPE_MOSTLY_Q4_0}[file_type]
    params.pure = True
    partial = target.with_name(target.name + ".partial")
    if llama_cpp.llama_model_quantize(str(source).encode(), str(partial).encode(), ctypes.byref(params)) != 0:
        raise SystemExit(f"llama.cpp cannot quantise to {file_type}")
    partial.replace(target)


if __name__ == "__main__":
    checkpoint, target, file_type = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3]
    wide = target.with_name(target.name.removesuffix(file_type) + "f32")
    if not wide.is_file():
        write(checkpoint, wide)
    if file_type != "f32":
        quantize(wide, target, file_type)

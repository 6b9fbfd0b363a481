"""A sealed artifact that is true in everything but its programs, which are a few bytes of no code."""

from collections.abc import Callable
from pathlib import Path

import msgspec
import numpy as np

from pllm.build.pack import Staging, build_lock, stage
from pllm.runtime.artifact import MANIFEST, SEAL, seal_text
from pllm.runtime.machine import Machine
from pllm.runtime.manifest import (
    FORMAT_VERSION,
    CertificateSummary,
    Constant,
    DimRange,
    EngineDefaults,
    FileEntry,
    KvInfo,
    Manifest,
    ModelInfo,
    ProgramInfo,
    Provenance,
    Requires,
    TensorInfo,
    WeightsInfo,
)
from pllm.runtime.memory import MemoryLedger
from pllm.runtime.safetensors_file import TensorSpec

WEIGHTS = {
    "embed": np.arange(60, dtype=np.float32).reshape(15, 4),
    "norm": np.ones(5, dtype=np.float32),
    "head": np.linspace(0, 1, 21, dtype=np.float32),
}


def manifest_of(files: dict[str, FileEntry], weights: WeightsInfo, machine: Machine) -> Manifest:
    kv = KvInfo(dtype="float32", num_layers=2, num_kv_heads=2, block_size=16, head_dim=8)
    return Manifest(
        format_version=FORMAT_VERSION,
        name="tiny",
        provenance=Provenance(
            recipe="tiny.toml",
            recipe_sha256="0" * 64,
            checkpoint="./tiny",
            revision=None,
            checkpoint_sha256="1" * 64,
            pllm="0.1.0",
            builder_sha256="2" * 64,
            transformers="5.23.0",
            torch="2.13.0",
        ),
        requires=Requires(
            torch=machine.torch, device="cpu", machine=machine.architecture, isa=(), glibc=machine.glibc or "2.17"
        ),
        model=ModelInfo(
            architecture="TinyForCausalLM",
            vocab_size=15,
            context=256,
            num_layers=2,
            num_kv_heads=2,
            head_dim=8,
            num_parameters=86,
            dtype="float32",
            eos_token_ids=(3,),
        ),
        operators=("ops/libpllm_ops.so",),
        programs=(
            ProgramInfo(
                name="main",
                file="programs/main/model.so",
                dims={"T": DimRange(min=1, max=512)},
                inputs=(TensorInfo(name="input_ids", dtype="int64", shape=("T",)),),
                outputs=(TensorInfo(name="logits", dtype="float32", shape=("T", 15)),),
                constants=(Constant(name="c0", weight="embed", shape=(15, 4)),),
            ),
        ),
        weights=weights,
        kv=kv,
        memory=MemoryLedger(weights=weights.num_bytes, activations=1000, runtime=2000, kv_block=kv.block_bytes),
        engine=EngineDefaults(
            max_model_len=256,
            max_num_seqs=4,
            max_num_batched_tokens=512,
            memory="auto",
            threads="auto",
            buckets=(1, 2, 4),
            prefill_chunk=256,
            inter_token_target_ms=None,
        ),
        tokenizer=("tokenizer/tokenizer.json",),
        generation="generation.json",
        golden="golden.json",
        latency="measured/latency.json",
        certificate=CertificateSummary(
            reference="transformers 5.23.0, float32",
            num_prompts=1,
            num_tokens=4,
            max_logit_error=1e-5,
            bound=1e-3,
            kl_divergence=1e-9,
            skipped_share=0.0,
        ),
        files=files,
    )


def fill(staging: Staging) -> WeightsInfo:
    for name, content in {
        "ops/libpllm_ops.so": b"\x7fELF operators",
        "programs/main/model.so": b"\x7fELF program",
        "tokenizer/tokenizer.json": b"{}",
        "generation.json": b"{}",
        "golden.json": b"[]",
        "measured/latency.json": b"[]",
    }.items():
        staging.path(name).write_bytes(content)
    specs = [TensorSpec(name, "F32", value.shape) for name, value in WEIGHTS.items()]
    return staging.write_weights(specs, WEIGHTS.__getitem__, shard_bytes=200)


def make_artifact(target: Path) -> Path:
    with build_lock(target, lambda: None), stage(target) as staging:
        weights = fill(staging)
        staging.seal(lambda files: manifest_of(files, weights, Machine.this()))
    return target


Rewrite = Callable[[dict[str, object]], None]


def rewrite(artifact: Path, change: Rewrite) -> None:
    """Change the manifest and seal it anew, as somebody who means harm would."""
    document = msgspec.json.decode((artifact / MANIFEST).read_bytes())
    change(document)
    write_document(artifact, msgspec.json.encode(document))


def write_document(artifact: Path, document: bytes) -> None:
    (artifact / MANIFEST).write_bytes(document)
    (artifact / SEAL).write_bytes(seal_text(document))

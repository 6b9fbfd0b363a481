"""The peers: by precision, where they are installed, and how they come to read a checkpoint.

Each peer stands in an environment of its own (``make bench-peers-install``). A checkpoint is converted for it when it
is first asked for, with the peer's own tool, and kept under the checkpoint's fingerprint.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from .sides import ROOT, Side, run_module

__all__ = ["PEERS", "PRECISIONS", "Peer", "side_of"]

_ENVIRONMENTS = ROOT / ".venv-peers"
_MODELS = _ENVIRONMENTS / "models"
_WITHOUT_STATIC = ("W1", "W2", "W3")


@dataclass(frozen=True, slots=True)
class Peer:
    """``engine`` is the worker's argument; ``environment`` a folder of environments, None for this one;
    ``convert`` makes the model that the peer reads: (python, checkpoint, target) -> words of a module to run."""

    label: str
    precision: str
    module: str
    engine: str
    environment: str | None = None
    suffix: str = ""
    convert: Callable[[Path, Path], tuple[str, list[str]]] | None = None
    workloads: tuple[str, ...] = ("W1", "W2", "W3", "W4")


def _gguf(file_type: str) -> Callable[[Path, Path], tuple[str, list[str]]]:
    return lambda checkpoint, target: ("gguf_checkpoint", [str(checkpoint), str(target), file_type])


def _openvino(weights: str) -> Callable[[Path, Path], tuple[str, list[str]]]:
    return lambda checkpoint, target: ("openvino_checkpoint", [str(checkpoint), str(target), weights])


def _ctranslate2(weights: str) -> Callable[[Path, Path], tuple[str, list[str]]]:
    return lambda checkpoint, target: ("ctranslate2_checkpoint", [str(checkpoint), str(target), weights])


PEERS = {
    "transformers": Peer("transformers, static batches", "float32", "run_transformers", "static"),
    "transformers-continuous": Peer(
        "transformers, continuous batching", "float32", "run_transformers", "continuous", workloads=_WITHOUT_STATIC
    ),
    "llama-cpp": Peer("llama.cpp f32", "float32", "run_llama_cpp", "f32", "llama-cpp", "f32.gguf", _gguf("f32")),
    "openvino-f16": Peer(
        "OpenVINO GenAI, f16 weights", "float32", "run_openvino", "f16", "openvino", "openvino-f16", _openvino("fp16")
    ),
    "ctranslate2": Peer(
        "CTranslate2 f32",
        "float32",
        "run_ctranslate2",
        "f32",
        "ctranslate2",
        "ctranslate2-f32",
        _ctranslate2("float32"),
    ),
    "llama-cpp-q8_0": Peer("llama.cpp Q8_0", "int8", "run_llama_cpp", "q8_0", "llama-cpp", "q8_0.gguf", _gguf("q8_0")),
    "openvino-int8": Peer(
        "OpenVINO GenAI int8", "int8", "run_openvino", "int8", "openvino", "openvino-int8", _openvino("int8")
    ),
    "ctranslate2-int8": Peer(
        "CTranslate2 int8", "int8", "run_ctranslate2", "int8", "ctranslate2", "ctranslate2-int8", _ctranslate2("int8")
    ),
    "llama-cpp-q4_0": Peer("llama.cpp Q4_0", "int4", "run_llama_cpp", "q4_0", "llama-cpp", "q4_0.gguf", _gguf("q4_0")),
    "openvino-int4": Peer(
        "OpenVINO GenAI int4", "int4", "run_openvino", "int4", "openvino", "openvino-int4", _openvino("int4")
    ),
}
"""By the names of the command line. ``precision``: of the weights, or of the arithmetic where that is float32."""

PRECISIONS = {
    "float32": "float32 arithmetic on every side",
    "int8": "weights in int8 on every side",
    "int4": "weights in int4 on every side",
}


def side_of(peer: Peer, checkpoint: Path, fingerprint: str) -> Side | str:
    """A peer ready to run on a checkpoint, or why it is left out."""
    if peer.environment is None:
        return Side(peer.label, peer.module, peer.engine, checkpoint, peer.workloads)
    home = _ENVIRONMENTS / peer.environment
    if not (home / ".installed").is_file():
        return f"{peer.label} is not installed; make bench-peers-install installs it"
    python = home / "bin" / "python"
    _MODELS.mkdir(exist_ok=True)
    model = _MODELS / f"{fingerprint[:16]}-{peer.suffix}"
    if peer.convert is not None and not model.exists():
        module, words = peer.convert(checkpoint, model)
        done = run_module(python, module, words, threads=2)
        if done.returncode != 0 or not model.exists():
            said = done.stderr.strip().splitlines() or ["no reason"]
            return f"the checkpoint was not converted for {peer.label}: {said[-1]}"
    return Side(peer.label, peer.module, peer.engine, model, peer.workloads, python)

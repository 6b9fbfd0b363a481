"""The peers: by precision, where they are installed, and how they come to read a checkpoint.

Each peer stands in an environment of its own (``make bench-peers-install``). A checkpoint is converted for it when it
is first asked for, with the peer's own tool, and kept under the checkpoint's fingerprint.
"""

from dataclasses import dataclass
from pathlib import Path

from .sides import ROOT, Side, run_module

__all__ = ["PEERS", "PRECISIONS", "Peer", "side_of"]

_ENVIRONMENTS = ROOT / ".venv-peers"
_MODELS = _ENVIRONMENTS / "models"


@dataclass(frozen=True, slots=True)
class Peer:
    """``tool`` names its worker, its environment and its converter; ``form`` is how it holds weights, of transformers
    the way in which it batches."""

    label: str
    precision: str
    tool: str
    form: str
    workloads: tuple[str, ...] = ("W1", "W2", "W3", "W4")

    @property
    def environment(self) -> Path | None:
        """The folder that it is installed in; None where that is this one."""
        return None if self.tool == "transformers" else _ENVIRONMENTS / self.tool.replace("_", "-")


PEERS = {
    "transformers": Peer("transformers, static batches", "float32", "transformers", "static"),
    "transformers-continuous": Peer(
        "transformers, continuous batching", "float32", "transformers", "continuous", workloads=("W1", "W2", "W3")
    ),
    "llama-cpp": Peer("llama.cpp f32", "float32", "llama_cpp", "f32"),
    "openvino-f16": Peer("OpenVINO GenAI, f16 weights", "float32", "openvino", "f16"),
    "ctranslate2": Peer("CTranslate2 f32", "float32", "ctranslate2", "f32"),
    "llama-cpp-q8_0": Peer("llama.cpp Q8_0", "int8", "llama_cpp", "q8_0"),
    "openvino-int8": Peer("OpenVINO GenAI int8", "int8", "openvino", "int8"),
    "ctranslate2-int8": Peer("CTranslate2 int8", "int8", "ctranslate2", "int8"),
    "llama-cpp-q4_0": Peer("llama.cpp Q4_0", "int4", "llama_cpp", "q4_0"),
    "openvino-int4": Peer("OpenVINO GenAI int4", "int4", "openvino", "int4"),
}
"""By the names of the command line. ``precision``: of the weights, or of the arithmetic where that is float32."""

PRECISIONS = {
    "float32": "float32 arithmetic on every side",
    "int8": "weights in int8 on every side",
    "int4": "weights in int4 on every side",
}


def side_of(peer: Peer, checkpoint: Path, fingerprint: str) -> Side | str:
    """A peer ready to run on a checkpoint, or why it is left out."""
    worker, home = f"run_{peer.tool}", peer.environment
    if home is None:
        return Side(peer.label, worker, peer.form, checkpoint, peer.workloads)
    if not (home / ".installed").is_file():
        return f"{peer.label} is not installed; make bench-peers-install installs it"
    python = home / "bin" / "python"
    _MODELS.mkdir(exist_ok=True)
    model = _MODELS / f"{fingerprint[:16]}-{peer.tool}-{peer.form}"
    if not model.exists():
        words = [str(checkpoint), str(model), peer.form]
        done = run_module(python, f"{peer.tool}_checkpoint", words, threads=2)
        if done.returncode != 0 or not model.exists():
            said = done.stderr.strip().splitlines() or ["no reason"]
            return f"the checkpoint was not converted for {peer.label}: {said[-1]}"
    return Side(peer.label, worker, peer.form, model, peer.workloads, python)

"""The measured latencies of an artifact, and what follows from them for a step's size."""

from pathlib import Path

import msgspec

from pllm.runtime.errors import ArtifactDamagedError

__all__ = ["Latencies", "Latency"]


class Latency(msgspec.Struct, frozen=True):
    """One step's duration: `num_tokens` new tokens of `num_seqs` sequences, `context` tokens each after it."""

    num_seqs: int
    num_tokens: int
    context: int
    ms: float


class Latencies(msgspec.Struct, frozen=True):
    """``measured/latency.json``. ``calibration``: seconds of the calibration kernel (`gate.calibration`) beside them;
    ``cpu``: where that was. An older build has neither."""

    rows: tuple[Latency, ...]
    calibration: float | None = None
    cpu: str = ""

    @classmethod
    def read(cls, path: Path) -> "Latencies":
        """Raises ArtifactDamagedError for a file that is none."""
        try:
            return msgspec.json.decode(path.read_bytes(), type=cls)
        except msgspec.DecodeError as error:
            raise ArtifactDamagedError(f"{path} is malformed: {error}; build the artifact again", path) from error

    def prompt_tokens_within(self, ms: float) -> int | None:
        """The most tokens of one prompt whose step took no longer; between two measured sizes, on the line that joins
        them. At least the smallest that was measured; None where the largest was still fast enough.
        """
        rows = sorted((row.num_tokens, row.ms) for row in self.rows if row.num_seqs == 1 and row.num_tokens > 1)
        smaller = None
        for num_tokens, took in rows:
            if took > ms:
                if smaller is None:
                    return num_tokens
                tokens, fast = smaller
                return int(tokens + (num_tokens - tokens) * (ms - fast) / (took - fast))
            smaller = (num_tokens, took)
        return None

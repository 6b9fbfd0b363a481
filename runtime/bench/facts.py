"""What a figure was measured on and with. A report without them is a number without a unit."""

import os
import platform
import time
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version

from pllm import __version__
from pllm.runtime.artifact import Manifest
from pllm.runtime.machine import cpu_count, cpu_features, cpu_name

__all__ = ["MachineFacts", "artifact_facts", "now"]

_TELLING = ("avx2", "fma", "f16c", "avx512f", "avx512_vnni", "avx_vnni", "avx512_bf16", "amx_bf16", "amx_int8")


@dataclass(frozen=True, slots=True)
class MachineFacts:
    """The machine at the start of a measurement. ``load``: runnable tasks, the mean of the last minute; what is above
    zero before anything of ours runs competes with it."""

    cpu: str
    cores: int
    features: tuple[str, ...]
    memory_bytes: int
    kernel: str
    load: float
    versions: dict[str, str]

    @classmethod
    def here(cls, *packages: str) -> "MachineFacts":
        """``packages``: those whose versions decide the figure, besides pllm and Python."""
        have = cpu_features()
        versions = {"pllm": __version__, "python": platform.python_version()}
        for package in packages:
            try:
                versions[package] = version(package)
            except PackageNotFoundError:
                versions[package] = "absent"
        return cls(
            cpu=cpu_name(),
            cores=cpu_count(),
            features=tuple(name for name in _TELLING if name in have),
            memory_bytes=os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
            kernel=platform.release(),
            load=round(os.getloadavg()[0], 2),
            versions=versions,
        )

    def as_dict(self) -> dict[str, object]:
        return asdict(self)

    @property
    def line(self) -> str:
        """All of it in one line."""
        names = ", ".join(f"{name} {number}" for name, number in self.versions.items())
        return f"{self.cpu}, {self.cores} cores ({' '.join(self.features)}), load {self.load:g} before; {names}"


def artifact_facts(manifest: Manifest) -> dict[str, object]:
    """What of an artifact decides its speed."""
    return {
        "name": manifest.name,
        "checkpoint_sha256": manifest.provenance.checkpoint_sha256,
        "builder_sha256": manifest.provenance.builder_sha256,
        "num_parameters": manifest.model.num_parameters,
        "weights_bytes": manifest.weights.num_bytes,
        "kv_dtype": manifest.kv.dtype,
        "block_size": manifest.kv.block_size,
        "max_num_seqs": manifest.engine.max_num_seqs,
        "max_num_batched_tokens": manifest.engine.max_num_batched_tokens,
        "prefill_chunk": manifest.engine.prefill_chunk,
        "tuning": str(manifest.engine.tuning),
    }


def now() -> str:
    """The time of day in ISO 8601, UTC."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())

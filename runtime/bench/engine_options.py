"""How a benchmark opens the engine, in this process or behind a server."""

from contextlib import AbstractContextManager, closing
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pllm.runtime.engine_core import EngineCore

__all__ = ["EngineOptions"]


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineOptions:
    """The limits of ``pllm run``; None: the artifact's own.

    Prefix caching is off unless asked for: a repeated prompt would be found, and not computed.
    """

    threads: int | None = None
    max_num_seqs: int | None = None
    memory: str | None = None
    prefix_caching: bool = False

    def open(self, artifact: Path, *, max_waiting: int) -> "AbstractContextManager[EngineCore]":
        """The engine core, closed when the block is left. Raises as `EngineCore.open`."""
        from pllm.runtime.engine_core import EngineCore  # noqa: PLC0415  (native libraries)

        core = EngineCore.open(
            artifact,
            max_num_seqs=self.max_num_seqs,
            memory=self.memory,
            threads=self.threads,
            enable_prefix_caching=self.prefix_caching,
            max_waiting=max_waiting,
        )
        return closing(core)

    def flags(self) -> list[str]:
        """The same as flags of ``pllm run``."""
        values = {"--threads": self.threads, "--max-num-seqs": self.max_num_seqs, "--memory": self.memory}
        flags = [word for flag, value in values.items() if value is not None for word in (flag, str(value))]
        return flags if self.prefix_caching else [*flags, "--no-prefix-caching"]

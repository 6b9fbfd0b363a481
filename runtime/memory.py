"""The memory plan: what an engine holds, decided once when it starts, from the artifact's ledger and what is free.

    available to the process (the smaller of the machine's and its control groups')
    +------------------------------------------------------------------------------------+
    | weights          | activations   | runtime     | KV pool: num_blocks blocks | free |
    | mapped, one copy | the largest   | libraries,  | +----+----+----+-   -+----+|      |
    | for all programs | step's        | buffers,    | | 0  | 1  | 2  | ... | n-1||      |
    |                  | tensors       | the sampler | +----+----+----+-   -+----+|      |
    +------------------------------------------------------------------------------------+
    |<----- fixed: the ledger of the manifest, measured ---->|<- a formula, here  ->|

One block holds ``block_size`` tokens of all layers. The pool is allocated once; serving allocates no KV, so that what
does not fit waits or is refused, and memory never runs out while serving.

    fixed   = weights + activations + runtime
    budget  = available                            memory = "auto"
            | the given bytes, at most available   memory = "4GiB"
            | the given share of available         memory = 0.8
    most    = (budget - fixed) / block bytes
    one     = ceil(max_model_len / block_size)     fewer than these: DoesNotFitError
    wanted  = max_num_seqs * one
    blocks  = min(wanted, most)                    "auto": min(wanted, max(one, most / 2))

On a GPU the same formula holds with the GPU's free memory: "auto" is then a share of it (:func:`setting_for`), and the
captured graphs are one more fixed term.
"""

import re
from dataclasses import dataclass

import msgspec

from pllm.runtime.errors import DoesNotFitError

__all__ = ["MemoryLedger", "MemoryPlan", "MemorySetting", "format_bytes", "parse_memory", "setting_for"]

MemorySetting = str | float | int
"""``"auto"``, a size such as ``"4GiB"`` or ``"900 MB"``, or a share of the available memory: ``0 < share <= 1``."""

_GPU_SHARE = 0.9
_UNITS = {"": 1, "b": 1, **{f"{p}b": 1000 ** (i + 1) for i, p in enumerate("kmgt")}}
_UNITS |= {f"{p}ib": 1024 ** (i + 1) for i, p in enumerate("kmgt")}


class MemoryLedger(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The fixed terms, in bytes, as the build measured them, and what one block of the KV pool takes."""

    weights: int
    """The weight files, mapped: page cache that all engines of one artifact share."""
    activations: int
    """The largest step's own tensors, and half as much again, which the thread may keep of other steps'."""
    runtime: int
    """What the process holds otherwise: libraries, the interpreter, input and sampling buffers."""
    kv_block: int
    """One block: ``num_layers * 2 * num_kv_heads * block_size * bytes of a key``, in int8 with its scale."""
    graphs: int = 0
    """The captured graphs of all buckets, which share one memory pool; 0 on a CPU."""

    @property
    def fixed(self) -> int:
        return self.weights + self.activations + self.runtime + self.graphs


@dataclass(frozen=True, slots=True)
class MemoryPlan:
    """How many blocks there are, and the numbers that led there."""

    ledger: MemoryLedger
    available: int
    """Bytes that were available to the process, its own weights not yet counted."""
    block_size: int
    num_blocks: int
    wanted_blocks: int
    """What ``max_num_seqs`` sequences of ``max_model_len`` tokens would take."""
    max_model_len: int
    max_num_seqs: int

    @classmethod
    def solve(
        cls,
        ledger: MemoryLedger,
        *,
        block_size: int,
        max_model_len: int,
        max_num_seqs: int,
        memory: MemorySetting,
        available: int,
    ) -> "MemoryPlan":
        """The plan by the module's formula: a function of its arguments and of nothing else.

        Raises DoesNotFitError where not one sequence of ``max_model_len`` tokens fits, with what it would need, what
        there is, and the longest context that does fit.
        """
        setting = parse_memory(memory)
        budget = available
        if isinstance(setting, float):
            budget = int(available * setting)
        elif isinstance(setting, int):
            budget = min(setting, available)
        one = -(-max_model_len // block_size)
        wanted = max_num_seqs * one
        most = max(0, budget - ledger.fixed) // ledger.kv_block
        if most < one:
            raise DoesNotFitError(_refusal(ledger, max_model_len, one, budget, most * block_size))
        blocks = min(wanted, max(one, most // 2) if setting == "auto" else most)
        return cls(ledger, available, block_size, blocks, wanted, max_model_len, max_num_seqs)

    @property
    def kv_bytes(self) -> int:
        return self.num_blocks * self.ledger.kv_block

    @property
    def total_bytes(self) -> int:
        """All that the engine will hold, the mapped weights included."""
        return self.ledger.fixed + self.kv_bytes

    @property
    def num_tokens(self) -> int:
        """Tokens that the pool holds."""
        return self.num_blocks * self.block_size

    def concurrency(self, context: int) -> int:
        """Sequences of ``context`` tokens each that the pool holds at once, sharing nothing; at most max_num_seqs."""
        return min(self.max_num_seqs, self.num_blocks // -(-context // self.block_size))

    @property
    def notice(self) -> str | None:
        """One line where memory, not ``max_num_seqs``, decides the pool; None where nothing was cut."""
        if self.num_blocks == self.wanted_blocks:
            return None
        return (
            f"the KV pool holds {self.num_tokens} tokens ({self.num_blocks} blocks, {format_bytes(self.kv_bytes)}): "
            f"{self.max_num_seqs} sequences of {self.max_model_len} tokens would take {self.wanted_blocks} blocks, and "
            f"of {format_bytes(self.available)} available, weights and runtime take {format_bytes(self.ledger.fixed)}. "
            f"What does not fit waits; raise memory or lower max_num_seqs to change that."
        )


def setting_for(device: str, memory: MemorySetting) -> MemorySetting:
    """What "auto" means on a kind of device. A CPU's memory is everybody's: half of what would fit is left, by the
    formula. A GPU is the engine's: a tenth is left, for what its driver and allocator round up."""
    return _GPU_SHARE if device == "cuda" and memory == "auto" else memory


def parse_memory(value: object) -> str | float | int:
    """``"auto"``, a share as a float in (0, 1], or bytes as an int. Raises ValueError for anything else."""
    if value == "auto":
        return "auto"
    if isinstance(value, str):
        match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([a-zA-Z]*)\s*", value)
        unit = _UNITS.get(match.group(2).lower()) if match else None
        if match and unit:
            if not match.group(2) and float(match.group(1)) <= 1:
                return parse_memory(float(match.group(1)))
            size = int(float(match.group(1)) * unit)
            if size > 0:
                return size
    elif isinstance(value, float) and 0 < value <= 1:
        return value
    elif isinstance(value, int) and not isinstance(value, bool) and value >= 1:
        return 1.0 if value == 1 else value
    raise ValueError('must be "auto", a size such as "4GiB", or a share of the available memory in (0, 1]')


def format_bytes(size: int) -> str:
    """``1.50 GiB``, ``12.0 MiB``, ``900 B``: binary units, three figures."""
    if abs(size) < 1024:
        return f"{size} B"
    value = float(size)
    for unit in ("KiB", "MiB", "GiB", "TiB"):
        value /= 1024
        if abs(value) < 1000 or unit == "TiB":
            break
    digits = 2 if abs(value) < 10 else 1 if abs(value) < 100 else 0
    return f"{value:.{digits}f} {unit}"


def _refusal(ledger: MemoryLedger, max_model_len: int, blocks: int, budget: int, largest: int) -> str:
    kv = blocks * ledger.kv_block
    graphs = f"graphs {format_bytes(ledger.graphs)}, " if ledger.graphs else ""
    within = ledger.weights <= budget
    remedy = (
        f"the largest max_model_len that fits is {largest}: set that, or give more memory"
        if largest
        else "no context fits beside the weights: give more memory, "
        + ("build with a smaller engine.max_num_batched_tokens, " if within else "")
        + "or choose a smaller model"
    )
    return (
        f"one sequence of {max_model_len} tokens does not fit: it needs {format_bytes(ledger.fixed + kv)} "
        f"(weights {format_bytes(ledger.weights)}, activations {format_bytes(ledger.activations)}, {graphs}"
        f"runtime {format_bytes(ledger.runtime)}, KV {format_bytes(kv)}) and has {format_bytes(budget)}; {remedy}"
    )

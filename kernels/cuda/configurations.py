"""The kernels' configurations, frozen data: tile sizes, warps, stages and grid sizes by device, head size and group.

A program takes its configurations at build; nothing is searched for while serving. None of these rows has been timed:
they are what published kernels of the same shape use, checked for registers, shared memory and spills only
(`python -m pllm.kernels.cuda.resources`). A build may time others and pass its own rows (`Configurations.timed`).
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

__all__ = [
    "DEVICES",
    "Configurations",
    "DecodeConfiguration",
    "Device",
    "PrefillConfiguration",
    "SmallLinearConfiguration",
]


@dataclass(frozen=True, slots=True)
class Device:
    """What of a GPU the kernels' shapes depend on."""

    capability: int
    """10 times major plus minor, as in sm_90."""
    multiprocessors: int
    shared_memory: int
    """Bytes that one program may have at most."""
    native_fp8: bool
    """Whether Triton converts float8_e4m3fn there; else a pool of e4m3 is declared uint8."""


DEVICES: Mapping[str, Device] = MappingProxyType(
    {
        "sm_80": Device(80, multiprocessors=108, shared_memory=163 << 10, native_fp8=False),  # A100
        "sm_90": Device(90, multiprocessors=132, shared_memory=227 << 10, native_fp8=True),  # H100, H200
        "sm_100": Device(100, multiprocessors=148, shared_memory=227 << 10, native_fp8=True),  # B200
    }
)


@dataclass(frozen=True, slots=True)
class DecodeConfiguration:
    """Of decode attention. programs: the grid, over shares and KV heads; min_tiles: the smallest share of a program."""

    programs: int
    block_n: int
    num_warps: int
    num_stages: int
    min_tiles: int = 2


@dataclass(frozen=True, slots=True)
class PrefillConfiguration:
    """Of prefill attention. block_m: rows of a tile, query heads of a group times tokens."""

    block_m: int
    block_n: int
    num_warps: int
    num_stages: int


@dataclass(frozen=True, slots=True)
class SmallLinearConfiguration:
    """Of the product with up to eight rows. block_n: weight rows a program; block_k: of their columns at a time."""

    block_n: int
    block_k: int
    num_warps: int
    num_stages: int


# By the head size, padded to a power of two: block_n, warps, stages; two programs a multiprocessor. Half the stages go
# to the block table, whose entries the keys wait for: 5 keep two tiles of keys and values under way.
_DECODE = {
    "sm_80": {64: (128, 4, 5), 128: (64, 4, 5), 256: (32, 4, 5)},
    "sm_90": {64: (128, 4, 5), 128: (64, 4, 5), 256: (32, 4, 5)},
    "sm_100": {64: (128, 4, 5), 128: (64, 4, 5), 256: (32, 4, 5)},
}
# By the same: block_m, block_n, warps, stages.
_PREFILL = {
    "sm_80": {64: (64, 64, 4, 3), 128: (128, 32, 8, 3), 256: (64, 32, 8, 3)},
    "sm_90": {64: (128, 64, 4, 4), 128: (128, 64, 8, 5), 256: (64, 64, 8, 3)},
    "sm_100": {64: (128, 64, 4, 4), 128: (128, 64, 8, 5), 256: (64, 64, 8, 3)},
}


@dataclass(frozen=True, slots=True)
class Configurations:
    """All configurations of a program: what was timed for its device, and the shipped rows for the rest."""

    device_name: str
    """A key of DEVICES: the nearest architecture that is not newer than the device."""
    decode: Mapping[tuple[int, int], DecodeConfiguration] = field(default_factory=dict)
    """Timed, by head size and group (query heads a KV head)."""
    prefill: Mapping[tuple[int, int], PrefillConfiguration] = field(default_factory=dict)
    small_linear: Mapping[tuple[int, int, int], SmallLinearConfiguration] = field(default_factory=dict)
    """Timed, by N, K and the most rows."""

    @staticmethod
    def shipped(capability: tuple[int, int]) -> "Configurations":
        """The rows shipped for a device of that compute capability. Raises ValueError below 8.0."""
        fitting = [name for name, device in DEVICES.items() if device.capability <= 10 * capability[0] + capability[1]]
        if not fitting:
            known = ", ".join(DEVICES)
            raise ValueError(
                f"compute capability {capability[0]}.{capability[1]} is below what the kernels need: {known}"
            )
        return Configurations(fitting[-1])

    @property
    def device(self) -> Device:
        return DEVICES[self.device_name]

    def for_decode(self, head_dim: int, group: int) -> DecodeConfiguration:
        if (head_dim, group) in self.decode:
            return self.decode[head_dim, group]
        rows = _DECODE[self.device_name]
        block_n, num_warps, num_stages = rows[next(size for size in rows if head_dim <= size)]
        return DecodeConfiguration(2 * self.device.multiprocessors, block_n, num_warps, num_stages)

    def for_prefill(self, head_dim: int, group: int) -> PrefillConfiguration:
        if (head_dim, group) in self.prefill:
            return self.prefill[head_dim, group]
        rows = _PREFILL[self.device_name]
        return PrefillConfiguration(*rows[next(size for size in rows if head_dim <= size)])

    def for_small_linear(self, size: int, depth: int, max_rows: int) -> SmallLinearConfiguration:
        """size: weight rows (N, or 2 N where gated, halved); depth: K."""
        if (size, depth, max_rows) in self.small_linear:
            return self.small_linear[size, depth, max_rows]
        if max_rows > 1:
            return SmallLinearConfiguration(block_n=16, block_k=128, num_warps=1, num_stages=6)
        # One row has no matrix unit to fill: fewer weight rows a program, so that there are two a multiprocessor.
        block_n = 8 if size >= 16 * self.device.multiprocessors else 4
        return SmallLinearConfiguration(block_n, block_k=4096 // block_n, num_warps=4, num_stages=3)

"""Checkpoints that are quantised already: what their ``quantization_config`` says, and their weights as whole numbers.

Read are GPTQ (Frantar et al. 2022; the layout that AutoGPTQ made common), AWQ (Lin et al. 2023, its "gemm" layout) and
compressed-tensors (int-quantized, float-quantized, naive-quantized, pack-quantized). In all of them a product's weight
[N, K] is stored beside its scales, one for each output, or for each output and group of consecutive inputs:

    weight = (rounded - zero) * scale

Words of 32 bits hold eight numbers of four bits, or four of eight, the first in the lowest bits: along K in GPTQ, along
N in AWQ (in an order of its own), along K in compressed-tensors.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pllm.runtime.errors import CheckpointError

if TYPE_CHECKING:
    import torch

__all__ = ["QuantizedWeight", "Scheme", "scheme_of"]

_AWQ_ORDER = (0, 4, 1, 5, 2, 6, 3, 7)
"""Where in its word AWQ puts each of eight consecutive outputs."""
_PACKED = {"gptq": ".qweight", "awq": ".qweight", "pack-quantized": ".weight_packed"}
_CT_WHOLE = ("int-quantized", "float-quantized", "naive-quantized")


@dataclass(frozen=True, slots=True)
class QuantizedWeight:
    """A product's weight [N, K] as its checkpoint has it."""

    bits: int
    unpack: Callable[[], "torch.Tensor"]
    """int8 [N, K], or float8 (e4m3) [N, K]: made when it is asked for, the rest says how it can be stored."""
    columns: int
    """K."""
    scale: "torch.Tensor"
    """[N, groups], in the checkpoint's precision."""
    zero: "torch.Tensor | None" = None
    """int32 [N, groups]; none where it is 0 everywhere."""
    group_of: "torch.Tensor | None" = None
    """int64 [K], the group of each input; none where groups are consecutive inputs."""
    is_float: bool = False

    @property
    def group(self) -> int:
        """Inputs that share a scale."""
        return self.columns // int(self.scale.shape[1])

    def dequantize(self) -> "torch.Tensor":
        """The weight that is meant, float32 [N, K]."""
        import torch  # noqa: PLC0415

        columns = torch.arange(self.columns) // self.group if self.group_of is None else self.group_of
        wide = self.unpack().float()
        if self.zero is not None:
            wide -= self.zero.float()[:, columns]
        return wide * self.scale.float()[:, columns]

    @property
    def obstacle(self) -> str | None:
        """Why (whole number - zero) * scale of consecutive inputs does not say all; None where it does."""
        if self.is_float:
            return "it is float8"
        return None if self.group_of is None else "its inputs are not in the order of their groups (desc_act)"


@dataclass(frozen=True, slots=True)
class Scheme:
    """How a checkpoint is quantised."""

    layout: str
    """``gptq``, ``awq``, or a format of compressed-tensors."""
    bits: int
    is_float: bool
    is_ordered: bool
    """As it says of itself: inputs are in the order of their groups."""
    zero_offset: int = 0
    """What GPTQ's first format stores zeros less."""

    def __str__(self) -> str:
        kind = "float8" if self.is_float else f"int{self.bits}"
        return f"{self.layout.upper() if '-' not in self.layout else 'compressed-tensors ' + self.layout}, {kind}"

    @property
    def storage(self) -> tuple[str, str]:
        """``quantization.weights`` for it, and why: the narrowest form that its numbers fit."""
        if self.is_float:
            return "bf16", "its float8 is stored in bf16, which it fits, and products are scaled"
        if self.bits == 8:
            return "int8", "its int8 is kept where it has a scale for each output"
        if self.is_ordered:
            return "int4", "its int4 is kept, with its scales rounded to bf16"
        return "int8", "its int4 has reordered inputs (desc_act), and is rounded again, to int8"

    def modules(self, names: Iterable[str]) -> dict[str, tuple[str, ...]]:
        """The tensors of each quantised product, by the name of its module."""
        present = set(names)
        ending = _PACKED.get(self.layout, ".weight_scale")
        found = sorted(name.removesuffix(ending) for name in present if name.endswith(ending))
        parts = (
            ("qweight", "qzeros", "scales", "g_idx")
            if self.layout in ("gptq", "awq")
            else ("weight", "weight_packed", "weight_scale", "weight_zero_point", "weight_shape", "weight_g_idx",
                  "input_scale", "input_zero_point")
        )  # fmt: skip
        return {
            module: tuple(f"{module}.{part}" for part in parts if f"{module}.{part}" in present) for module in found
        }

    def scale(self, module: str) -> str:
        """The name of a product's scales."""
        return f"{module}.{'scales' if self.layout in ('gptq', 'awq') else 'weight_scale'}"

    def shape(self, module: str, shapes: Mapping[str, tuple[int, ...]]) -> tuple[int, int]:
        """[N, K] of a product's weight, from the shapes of its tensors. Raises KeyError where one is missing."""
        per_word = 32 // self.bits
        if self.layout == "gptq":
            words, outputs = shapes[f"{module}.qweight"]
            return outputs, words * per_word
        if self.layout == "awq":
            inputs, words = shapes[f"{module}.qweight"]
            return words * per_word, inputs
        if self.layout == "pack-quantized":
            outputs, words = shapes[f"{module}.weight_packed"]
            return outputs, words * per_word
        outputs, inputs = shapes[f"{module}.weight"]
        return outputs, inputs

    def read(self, module: str, tensor: Callable[[str], "torch.Tensor"], names: Iterable[str]) -> QuantizedWeight:
        """A product's weight. ``tensor`` reads one of ``names``, which are those of :meth:`modules`.

        Raises KeyError for a tensor that is missing, ValueError for tensors that do not go together.
        """
        own = {name.removeprefix(module + "."): name for name in names}
        read = {"gptq": self._gptq, "awq": self._awq, "pack-quantized": self._packed}.get(self.layout, self._whole)
        found = read(lambda part: tensor(own[part]), own)
        rows, columns = self.shape(module, {name: tuple(tensor(name).shape) for name in names})
        groups, order = found.scale.shape[1], found.group_of
        fits = found.scale.shape[0] == rows and groups > 0 and found.columns <= columns
        fits = fits and (found.zero is None or found.zero.shape == found.scale.shape)
        if order is None:
            fits = fits and found.columns % groups == 0
        else:
            fits = fits and order.shape == (found.columns,) and 0 <= int(order.min()) <= int(order.max()) < groups
        if not fits:
            raise ValueError(f"a weight of [{rows}, {columns}] with scales of {list(found.scale.shape)}")
        return found

    def _gptq(self, tensor: Callable[[str], "torch.Tensor"], own: Mapping[str, str]) -> QuantizedWeight:
        words, scale = tensor("qweight"), tensor("scales").T
        half, columns = 1 << (self.bits - 1), words.shape[0] * 32 // self.bits
        zero = _unpacked(tensor("qzeros"), self.bits)[:, : scale.shape[0]].T + self.zero_offset
        order = _order(tensor("g_idx"), scale.shape[1]) if "g_idx" in own else None
        return QuantizedWeight(
            self.bits,
            lambda: _signed(_unpacked(words.T, self.bits), half),
            columns,
            scale,
            _nonzero(zero - half),
            order,
        )

    def _awq(self, tensor: Callable[[str], "torch.Tensor"], own: Mapping[str, str]) -> QuantizedWeight:
        words, half = tensor("qweight"), 1 << (self.bits - 1)

        def by_output(packed: "torch.Tensor") -> "torch.Tensor":
            eights: torch.Tensor = _unpacked(packed, self.bits).unflatten(1, (-1, len(_AWQ_ORDER)))
            return eights[:, :, _AWQ_ORDER].flatten(1).T

        zero = _nonzero(by_output(tensor("qzeros")) - half) if "qzeros" in own else None
        return QuantizedWeight(
            self.bits, lambda: _signed(by_output(words), half), words.shape[0], tensor("scales").T, zero
        )

    def _packed(self, tensor: Callable[[str], "torch.Tensor"], own: Mapping[str, str]) -> QuantizedWeight:
        rows, columns = tensor("weight_shape").tolist()
        words, half = tensor("weight_packed"), 1 << (self.bits - 1)
        scale, zero = _by_output(tensor("weight_scale"), rows), None
        if "weight_zero_point" in own:
            zero = _nonzero(_unpacked(tensor("weight_zero_point").T, self.bits).T[:rows] - half)
        order = _order(tensor("weight_g_idx"), scale.shape[1]) if "weight_g_idx" in own else None
        return QuantizedWeight(
            self.bits, lambda: _signed(_unpacked(words, self.bits)[:rows, :columns], half), columns, scale, zero, order
        )

    def _whole(self, tensor: Callable[[str], "torch.Tensor"], own: Mapping[str, str]) -> QuantizedWeight:
        rounded, zero = tensor("weight"), None
        rows, columns = rounded.shape
        scale = _by_output(tensor("weight_scale"), rows)
        if "weight_zero_point" in own and not self.is_float:
            zero = _nonzero(_by_output(tensor("weight_zero_point").int(), rows))
        return QuantizedWeight(self.bits, lambda: rounded, columns, scale, zero, is_float=self.is_float)


def scheme_of(config: Mapping[str, Any], label: str) -> Scheme | None:
    """What ``config.json`` says of quantised weights; None where they are not.

    Raises CheckpointError for a kind that is not read, with the reason.
    """
    said = config.get("quantization_config") or config.get("compression_config")
    if not said:
        return None

    def refuse(reason: str) -> CheckpointError:
        return CheckpointError(
            f"{label}: its weights are quantised in a way that is not read: {reason}; read are GPTQ in 4 and 8 bits, "
            f"AWQ (gemm) in 4, compressed-tensors in int4, int8 and float8; give one of these, or the original"
        )

    if not isinstance(said, dict):
        raise refuse("quantization_config is no table")
    method = said.get("quant_method")
    if method == "gptq":
        bits, form = said.get("bits"), said.get("checkpoint_format", "gptq")
        if bits not in (4, 8) or form not in ("gptq", "gptq_v2") or said.get("dynamic"):
            raise refuse(f"GPTQ with bits {bits}, checkpoint_format {form!r}, dynamic {said.get('dynamic') or 'none'}")
        ordered = not said.get("desc_act")
        return Scheme("gptq", bits, is_float=False, is_ordered=ordered, zero_offset=1 if form == "gptq" else 0)
    if method == "awq":
        bits, version = said.get("bits", said.get("w_bit")), str(said.get("version", "gemm")).lower()
        if bits != 4 or version != "gemm":
            raise refuse(f"AWQ with {bits} bits, version {version!r}")
        return Scheme("awq", bits, is_float=False, is_ordered=True)
    if method == "compressed-tensors":
        return _compressed_tensors(said, refuse)
    raise refuse(f"quant_method {method!r}")


def _compressed_tensors(said: Mapping[str, Any], refuse: Callable[[str], CheckpointError]) -> Scheme:
    groups = said.get("config_groups")
    if not isinstance(groups, dict) or len(groups) != 1:
        raise refuse(f"compressed-tensors with {len(groups) if isinstance(groups, dict) else 'no'} config_groups")
    (group,) = groups.values()
    layout = said.get("format")
    weights = group.get("weights") if isinstance(group, dict) else None
    if not isinstance(weights, dict) or layout not in (*_CT_WHOLE, "pack-quantized"):
        raise refuse(f"compressed-tensors in the format {layout!r}")
    bits, kind, strategy = weights.get("num_bits", 0), weights.get("type", "int"), weights.get("strategy")
    sparsity = said.get("sparsity_config") or {"format": "dense"}
    if not isinstance(sparsity, dict) or sparsity.get("format") != "dense" or said.get("transform_config"):
        raise refuse("compressed-tensors with sparsity or transforms")
    if strategy not in ("tensor", "channel", "group", None):
        raise refuse(f"compressed-tensors with the strategy {strategy!r}")
    if (kind, bits) not in (("int", 4), ("int", 8), ("float", 8)) or (layout == "pack-quantized" and kind != "int"):
        raise refuse(f"compressed-tensors with {kind} of {bits} bits")
    return Scheme(layout, bits, is_float=kind == "float", is_ordered=weights.get("actorder") != "group")


def _unpacked(words: "torch.Tensor", bits: int) -> "torch.Tensor":
    """int32 [R, C] to int32 [R, C * 32 / bits], without a sign."""
    import torch  # noqa: PLC0415

    shifts = torch.arange(0, 32, bits, dtype=torch.int32)
    return (words[:, :, None] >> shifts & ((1 << bits) - 1)).flatten(1)


def _signed(rounded: "torch.Tensor", half: int) -> "torch.Tensor":
    import torch  # noqa: PLC0415

    return (rounded - half).to(torch.int8).contiguous()


def _order(group_of: "torch.Tensor", groups: int) -> "torch.Tensor | None":
    """None where inputs are in the order of their groups."""
    import torch  # noqa: PLC0415

    plain = torch.arange(len(group_of)) // max(1, len(group_of) // groups)
    return None if torch.equal(group_of.long(), plain) else group_of.long()


def _nonzero(zero: "torch.Tensor") -> "torch.Tensor | None":
    return zero if bool(zero.any()) else None


def _by_output(scale: "torch.Tensor", rows: int) -> "torch.Tensor":
    """[1], [N] or [N, groups] to [N, groups]."""
    if scale.numel() == 1:
        return scale.reshape(1, 1).expand(rows, 1)
    return scale.reshape(rows, -1)

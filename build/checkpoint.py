"""The checkpoint: a Hugging Face model directory, opened without running or trusting anything in it.

Only JSON and safetensors are read, by bounded parsers. Refused are weights that are pickles, code of the checkpoint's
own (``auto_map``), shard names that leave the directory, and symlinks out of it; in a snapshot of the Hub's cache,
whose files are symlinks by design, a link may lead anywhere within that model's own folder of the cache.
torch is imported where the first tensor is asked for, transformers never.
"""

import hashlib
import mmap
import stat
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from pllm.build import hub
from pllm.build.quantized_checkpoint import QuantizedWeight, Scheme, scheme_of
from pllm.build.random_checkpoint import random_checkpoint
from pllm.build.recipe import Recipe
from pllm.runtime.errors import ArtifactError, CheckpointError
from pllm.runtime.file_hash import hash_files
from pllm.runtime.generation_config import GenerationConfig
from pllm.runtime.machine import cpu_count
from pllm.runtime.safetensors_file import SafetensorsError, TensorEntry, read_header

if TYPE_CHECKING:
    import torch

__all__ = ["TOKENIZER_FILES", "Checkpoint", "StoredTensor"]

TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "chat_template.json",
)
"""What a tokenizer is made of, where it is there; the first is demanded."""

_WEIGHT = ".weight"
_MAX_JSON_BYTES = 64 << 20
_INDEX = "model.safetensors.index.json"
_SINGLE = "model.safetensors"
_PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")
_TORCH_DTYPES = {
    "BOOL": "bool", "U8": "uint8", "I8": "int8", "I16": "int16", "I32": "int32", "I64": "int64",
    "F16": "float16", "BF16": "bfloat16", "F32": "float32", "F64": "float64", "F8_E4M3": "float8_e4m3fn",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """Where a tensor lies: its shard and its place in it."""

    shard: str
    entry: TensorEntry


class Checkpoint:
    """An opened checkpoint: what its JSON says, and its tensors by name, read when asked for."""

    def __init__(self, directory: Path, *, label: str, revision: str | None = None) -> None:
        """Open ``directory``. ``label`` is what the user calls it; ``revision`` the Hub's commit.

        Raises CheckpointError for a directory that is incomplete, malformed or not safe to open.
        """
        self.directory = directory
        self.label = label
        self.revision = revision
        if not directory.is_dir():
            raise CheckpointError(f"{label}: there is no directory {directory}")
        self._boundary = _boundary(directory)
        self.config: Mapping[str, Any] = self._json("config.json")
        """The model's configuration, as ``config.json`` holds it."""
        self.generation_config: Mapping[str, Any] = self._generation_config()
        """``generation_config.json``, and where it does not say what ends an answer, what ``config.json`` says."""
        self.tokenizer_files: tuple[str, ...] = tuple(name for name in TOKENIZER_FILES if self._has(name))
        """Names of the files of :data:`TOKENIZER_FILES` that are there."""
        self._refuse_what_cannot_be_built()
        self.scheme: Scheme | None = scheme_of(self.config, label)
        """How its weights are quantised; none where they are not."""
        self._stored: Mapping[str, StoredTensor] = self._index()
        self._modules = {} if self.scheme is None else self.scheme.modules(self._stored)
        self.tensors: Mapping[str, StoredTensor] = self._meant()
        """The weights by name, in the order of the shards and of the data in them; a quantised one as what it means."""
        self._maps: dict[str, mmap.mmap] = {}

    @classmethod
    def open(cls, recipe: Recipe, before_weights: hub.BeforeWeights) -> "Checkpoint":
        """The recipe's checkpoint: its directory, a generated one, or the Hub's, downloaded where it is not cached;
        ``before_weights`` may refuse the latter by its size.

        Raises CheckpointError.
        """
        if recipe.model.weights == "random":
            return cls(random_checkpoint(recipe), label=recipe.model.source)
        directory = recipe.source_directory()
        if directory is not None:
            return cls(directory, label=recipe.model.source)
        snapshot = hub.download(recipe.model.source, recipe.model.revision, before_weights)
        return cls(snapshot, label=recipe.model.source, revision=snapshot.name)

    @property
    def shards(self) -> tuple[str, ...]:
        """The files that hold the weights, in order."""
        return tuple(dict.fromkeys(stored.shard for stored in self._stored.values()))

    @property
    def num_bytes(self) -> int:
        """Bytes of all weights as they are stored."""
        return sum(stored.entry.nbytes for stored in self.tensors.values())

    @property
    def dtype(self) -> str:
        """The dtype (``F32``, ``BF16``, ...) that most of the weights' bytes have; of quantised ones, the scales'."""
        sizes: dict[str, int] = {}
        for stored in self.tensors.values():
            sizes[stored.entry.dtype] = sizes.get(stored.entry.dtype, 0) + stored.entry.nbytes
        return max(sizes, key=lambda dtype: (sizes[dtype], dtype))

    def tensor(self, name: str) -> "torch.Tensor":
        """A weight by name, backed by the mapped shard: pages are read as they are touched, and given back by the
        system when memory is short. Writing to it changes nothing on the disk. Only the latest shard stays mapped
        beside those whose tensors are still held: read tensors in the order of :attr:`tensors`. A quantised weight is
        made of its parts, in float32.

        Raises KeyError for a name that the checkpoint lacks.
        """
        if name.removesuffix(_WEIGHT) in self._modules:
            return self.quantized(name).dequantize()
        return self._tensor(name)

    def is_quantized(self, name: str) -> bool:
        """Whether a weight is stored as whole numbers, or as float8, with scales."""
        return name.endswith(_WEIGHT) and name.removesuffix(_WEIGHT) in self._modules

    def quantized(self, name: str) -> QuantizedWeight:
        """A quantised weight as it is stored. Raises CheckpointError where its tensors do not go together."""
        assert self.scheme is not None
        module = name.removesuffix(_WEIGHT)
        try:
            return self.scheme.read(module, self._tensor, self._modules[module])
        except (KeyError, ValueError, RuntimeError) as error:  # torch's, of shapes that cannot be what they should
            raise CheckpointError(f"{self.label}: {name} is no weight of {self.scheme}: {error}") from error

    def _tensor(self, name: str) -> "torch.Tensor":
        import torch  # noqa: PLC0415

        stored = self._stored[name]
        entry = stored.entry
        dtype = getattr(torch, _TORCH_DTYPES[entry.dtype])
        if not entry.nbytes:
            return torch.empty(entry.shape, dtype=dtype)
        if stored.shard not in self._maps:
            with (self.directory / stored.shard).open("rb") as file:
                # A private, writable mapping: torch warns of tensors over memory that cannot be written.
                self._maps = {stored.shard: mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)}
        data = torch.frombuffer(self._maps[stored.shard], dtype=torch.uint8, count=entry.nbytes, offset=entry.offset)
        if data.data_ptr() % dtype.itemsize:  # older writers did not align the header
            data = data.clone()
        return data.view(dtype).reshape(entry.shape)

    def fingerprint(self) -> str:
        """SHA-256 over the names and contents of all files that a build reads. Hashes of unchanged files are remembered
        (:mod:`pllm.runtime.file_hash`), so asking again costs no reading."""
        names = ["config.json", *self.tokenizer_files, *self.shards]
        names += [name for name in ("generation_config.json", _INDEX) if self._has(name)]
        hashes = hash_files(self.directory, sorted(names), threads=cpu_count())
        return hashlib.sha256("".join(f"{sha}  {name}\n" for name, sha in hashes.items()).encode()).hexdigest()

    def _has(self, name: str) -> bool:
        path = self.directory / name
        return path.is_symlink() or path.exists()

    def _file(self, name: str) -> Path:
        """The path of a file of the checkpoint, after making sure that it is a plain file inside its boundary."""
        path = self.directory / name
        try:
            resolved = path.resolve(strict=True)
            mode = resolved.stat().st_mode
        except (OSError, RuntimeError):
            raise CheckpointError(f"{self.label}: {name} is missing from {self.directory}") from None
        if not resolved.is_relative_to(self._boundary):
            raise CheckpointError(f"{self.label}: {name} is a link out of the checkpoint; copy the file into it")
        if not stat.S_ISREG(mode):
            raise CheckpointError(f"{self.label}: {name} is not a plain file")
        return path

    def _json(self, name: str) -> dict[str, Any]:
        with self._file(name).open("rb") as file:
            text = file.read(_MAX_JSON_BYTES + 1)
        if len(text) > _MAX_JSON_BYTES:
            raise CheckpointError(f"{self.label}: {name} has more than {_MAX_JSON_BYTES} bytes")
        try:
            return msgspec.json.decode(text, type=dict[str, Any])
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise CheckpointError(f"{self.label}: {name} is malformed: {error}") from None

    def _generation_config(self) -> Mapping[str, Any]:
        said = self._json("generation_config.json") if self._has("generation_config.json") else {}
        text = self.config.get("text_config")
        model = {**text, **self.config} if isinstance(text, dict) else self.config
        # The model's own end tokens, as transformers takes them over: many checkpoints name them there alone.
        ends = {} if model.get("eos_token_id") is None else {"eos_token_id": model["eos_token_id"]}
        try:
            GenerationConfig.from_dict({**ends, **said})
        except ArtifactError as error:
            raise CheckpointError(f"{self.label}: {error}") from None
        return {**ends, **said}

    def _refuse_what_cannot_be_built(self) -> None:
        if "tokenizer.json" not in self.tokenizer_files:
            raise CheckpointError(
                f"{self.label}: tokenizer.json is missing; save the tokenizer in its fast form "
                f"(AutoTokenizer.from_pretrained(...).save_pretrained(...))"
            )
        for name in ("config.json", "tokenizer_config.json"):
            if self._has(name) and self._json(name).get("auto_map"):
                raise CheckpointError(
                    f"{self.label}: {name} asks for code of the checkpoint's own (auto_map), which pllm never runs; "
                    f"remove auto_map if transformers itself has this architecture"
                )
        for name in self.tokenizer_files:
            self._file(name)

    def _index(self) -> dict[str, StoredTensor]:
        if self._has(_INDEX):
            shard_of = self._weight_map()
            entries = {shard: self._header(shard) for shard in dict.fromkeys(shard_of.values())}
            for name, shard in shard_of.items():
                if name not in entries[shard]:
                    raise CheckpointError(f"{self.label}: {_INDEX} looks for {name} in {shard}, which lacks it")
            return {
                name: StoredTensor(shard, entry)
                for shard, header in entries.items()
                for name, entry in header.items()
                if shard_of.get(name) == shard
            }
        if self._has(_SINGLE):
            return {name: StoredTensor(_SINGLE, entry) for name, entry in self._header(_SINGLE).items()}
        if any(next(self.directory.glob(pattern), None) for pattern in _PICKLES):
            raise CheckpointError(
                f"{self.label}: its weights are pickles, which can run any code when read; convert them to safetensors "
                f"(save_pretrained of transformers writes it)"
            )
        raise CheckpointError(f"{self.label}: neither {_SINGLE} nor {_INDEX} is in {self.directory}")

    def _meant(self) -> dict[str, StoredTensor]:
        """The tensors with each quantised product's parts replaced by the one weight that they stand for."""
        if self.scheme is None:
            return dict(self._stored)
        if not self._modules:
            raise CheckpointError(
                f"{self.label}: config.json says that its weights are quantised ({self.scheme}), and none of them is"
            )
        module_of = {part: module for module, parts in self._modules.items() for part in parts}
        shapes = {name: stored.entry.shape for name, stored in self._stored.items()}
        meant: dict[str, StoredTensor] = {}
        for name, stored in self._stored.items():
            if name not in module_of:
                meant[name] = stored
                continue
            module = module_of[name]
            if module + _WEIGHT in meant:
                continue
            try:
                shape = self.scheme.shape(module, shapes)
                scale = self._stored[self.scheme.scale(module)]
            except (KeyError, ValueError):
                raise CheckpointError(
                    f"{self.label}: {module} is not what {self.scheme} stores: it has "
                    f"{', '.join(part.removeprefix(module + '.') for part in self._modules[module])}"
                ) from None
            nbytes = sum(self._stored[part].entry.nbytes for part in self._modules[module])
            entry = replace(scale.entry, name=module + _WEIGHT, shape=shape, nbytes=nbytes)
            meant[module + _WEIGHT] = StoredTensor(scale.shard, entry)
        return meant

    def _weight_map(self) -> dict[str, str]:
        shard_of = self._json(_INDEX).get("weight_map")
        if not isinstance(shard_of, dict) or not shard_of:
            raise CheckpointError(f"{self.label}: {_INDEX} has no weight_map")
        for name, shard in shard_of.items():
            plain = isinstance(shard, str) and shard.endswith(".safetensors") and "\0" not in shard
            if not plain or Path(shard).name != shard:
                raise CheckpointError(
                    f"{self.label}: {_INDEX} puts {name} into {shard!r}, which is no file name of its own"
                )
        return shard_of

    def _header(self, shard: str) -> dict[str, TensorEntry]:
        try:
            entries, _ = read_header(self._file(shard))
        except SafetensorsError as error:
            raise CheckpointError(f"{self.label}: {error}") from None
        except OSError as error:
            raise CheckpointError(f"{self.label}: {shard}: {error.strerror}") from None
        for entry in entries.values():
            if entry.dtype not in _TORCH_DTYPES:
                raise CheckpointError(f"{self.label}: {entry.name} is stored as {entry.dtype}, which is not read yet")
        if not entries:
            raise CheckpointError(f"{self.label}: {shard} holds no tensors")
        return entries


def _boundary(directory: Path) -> Path:
    """The folder that links may not leave: the directory itself, or its model's folder in the Hub's cache
    (``models--ORG--NAME/snapshots/COMMIT``, whose files are links into ``models--ORG--NAME/blobs``)."""
    resolved = directory.resolve()
    in_hub_cache = resolved.parent.name == "snapshots" and resolved.parent.parent.name.startswith("models--")
    return resolved.parent.parent if in_hub_cache else resolved

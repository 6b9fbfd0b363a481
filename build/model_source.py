"""The model source: transformers. The one file that imports it.

A checkpoint's configuration, model, weights and tokenizer, as transformers would load them. The model is a skeleton,
whose parameters nothing ever touches; weights are read, and converted where transformers stores them in another form,
one at a time.
"""

import copy
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import torch
from transformers import AttentionInterface, AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import WeightConverter, WeightRenaming, dot_natural_key, rename_source_key
from transformers.initialization import no_init_weights
from transformers.utils.logging import disable_progress_bar

from pllm.build.checkpoint import Checkpoint
from pllm.build.quantized_checkpoint import QuantizedWeight
from pllm.runtime.errors import BuildError, CheckpointError

__all__ = ["ModelWeights", "load_config", "load_reference", "load_tokenizer", "skeleton"]

_ATTENTION = "pllm_paged"


def load_config(checkpoint: Checkpoint) -> Any:
    """The checkpoint's configuration, without what it says of quantised weights: they are read here, and mean what any
    weights do. Raises CheckpointError for one that transformers does not know."""
    try:
        config = AutoConfig.from_pretrained(checkpoint.directory, local_files_only=True)
        if hasattr(config, "quantization_config"):
            del config.quantization_config
        return config
    except Exception as error:  # whatever a configuration class makes of a value that it did not expect
        raise CheckpointError(f"{checkpoint.label}: transformers cannot read config.json: {_reason(error)}") from error


def skeleton(config: Any, attention: Callable[..., Any], dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    """The configuration's model over ``attention``, computing in ``dtype``, with parameters that are address space
    only: never initialised, read or even touched. Buffers hold what the model computes for them.

    Raises BuildError where transformers has no such model for generating text.
    """
    AttentionInterface.register(_ATTENTION, attention)
    try:
        with no_init_weights():
            model = AutoModelForCausalLM.from_config(config, dtype=dtype, attn_implementation=_ATTENTION)
    except Exception as error:  # a class that does not exist, or whatever its own makes of its numbers
        raise BuildError(
            f"transformers makes no causal language model of {type(config).__name__}: {_reason(error)}"
        ) from error
    model.tie_weights()  # left out with the initialisation
    return cast("PreTrainedModel", model.eval())


def load_reference(checkpoint: Checkpoint, dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    """transformers' own model with the checkpoint's weights: in float32, what the artifact is compared with."""
    disable_progress_bar()  # the build shows its own
    if checkpoint.scheme is not None:
        return _dequantized(checkpoint, dtype)
    model = AutoModelForCausalLM.from_pretrained(
        checkpoint.directory, dtype=dtype, attn_implementation="eager", local_files_only=True
    )
    return cast("PreTrainedModel", model.eval())


def _dequantized(checkpoint: Checkpoint, dtype: torch.dtype) -> PreTrainedModel:
    """The model with what a checkpoint's quantised weights mean, which needs no library of their format."""
    with no_init_weights():
        model = AutoModelForCausalLM.from_config(load_config(checkpoint), dtype=dtype, attn_implementation="eager")
    model.tie_weights()
    weights = ModelWeights(model, checkpoint)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(weights.tensor(name))
    return cast("PreTrainedModel", model.eval())


def load_tokenizer(directory: Path, label: str) -> Any:
    """The tokenizer that AutoTokenizer makes of a directory's files. ``label``: what the user calls the model; for a
    few models of the Hub transformers goes by it.

    Raises CheckpointError where transformers cannot load it, or not in the form that `tokenizers` runs.
    """
    try:
        config = AutoConfig.from_pretrained(directory, local_files_only=True)
        config._name_or_path = label
        tokenizer = AutoTokenizer.from_pretrained(
            directory, config=config, local_files_only=True, trust_remote_code=False
        )
    except Exception as error:  # its classes and the Rust side raise whatever they meet
        raise CheckpointError(f"{label}: transformers cannot load its tokenizer: {_reason(error)}") from error
    if not getattr(tokenizer, "is_fast", False):
        raise CheckpointError(
            f"{label}: its tokenizer ({type(tokenizer).__name__}) runs in Python, and the runtime runs only those of "
            f"the tokenizers library"
        )
    return tokenizer


@dataclass(slots=True)
class _Origin:
    """What transformers makes a parameter of, and maybe others with it."""

    target: str
    """The parameter; the first, where one conversion makes several."""
    converter: WeightConverter | None = None
    """None where the one stored tensor is the parameter."""
    stored: list[tuple[str, str]] = field(default_factory=list)
    """The checkpoint's tensors, in the order that transformers takes them in, each behind the converter's pattern that
    it matched."""


class ModelWeights:
    """A model's parameters and buffers by its own names, made of the checkpoint's tensors when they are asked for.

    A checkpoint may store parameters under other names and in other pieces than the model has them: an expert a tensor,
    where the model has one for all experts of a layer. The renaming and the conversions are transformers' own objects
    (transformers.conversion_mapping), applied as its loader applies them, but to one parameter at a time: memory holds
    that parameter's pieces, which are mapped files, and what is made of them.
    """

    def __init__(self, model: PreTrainedModel, checkpoint: Checkpoint) -> None:
        self._model = model
        self._checkpoint = checkpoint
        parameters = [*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False)]
        tied: dict[int, list[str]] = {}
        for name, tensor in parameters:
            tied.setdefault(id(tensor), []).append(name)
        self._names = {name: tied[id(tensor)] for name, tensor in parameters}
        self._buffers = dict(model.named_buffers(remove_duplicate=False))
        self._origins = _origins(model, checkpoint.tensors)
        self._converted: dict[str, torch.Tensor] = {}

    def __contains__(self, name: str) -> bool:
        return self._stored_name(name) is not None or name in self._buffers

    def tensor(self, name: str) -> torch.Tensor:
        """A parameter or buffer, in the checkpoint's precision; of tied ones, the one that the checkpoint has.

        Raises CheckpointError where it has none of them, or where its tensors cannot be converted.
        """
        stored = self._stored_name(name)
        if stored is None:
            if name not in self._buffers:
                raise CheckpointError(f"{self._checkpoint.label}: it lacks {name}")
            return self._buffers[name]
        origin = self._origins[stored]
        if origin.converter is None:
            return self._checkpoint.tensor(origin.stored[0][1])
        if stored not in self._converted:
            self._converted = self._convert(origin, origin.converter)
        if stored not in self._converted:
            raise CheckpointError(f"{self._checkpoint.label}: transformers' conversion gives no {stored}")
        return self._converted.pop(stored)

    def quantized(self, name: str) -> QuantizedWeight | None:
        """A parameter as the checkpoint has rounded it; None where it has not, or not by itself."""
        stored = self._stored_name(name)
        if stored is None or self._origins[stored].converter is not None:
            return None
        (own,) = (each for _, each in self._origins[stored].stored)
        return self._checkpoint.quantized(own) if self._checkpoint.is_quantized(own) else None

    def _stored_name(self, name: str) -> str | None:
        return next((each for each in self._names.get(name, ()) if each in self._origins), None)

    def _convert(self, origin: _Origin, converter: WeightConverter) -> dict[str, torch.Tensor]:
        self._converted = {}  # what an earlier conversion left goes before the next begins
        converter = copy.deepcopy(converter)
        for pattern, stored in origin.stored:
            tensor: Any = self._checkpoint.tensor(stored)  # takes tensors as well as the futures that it declares
            converter.add_tensor(origin.target, stored, pattern, tensor)
        try:
            made = converter.convert(origin.target, model=self._model, config=self._model.config)
        except Exception as error:  # an operation raises whatever its tensors lead it to
            raise CheckpointError(
                f"{self._checkpoint.label}: transformers cannot make {origin.target} of its "
                f"{len(origin.stored)} tensors: {_reason(error)}"
            ) from error
        return {name: value[0] if isinstance(value, list) else value for name, value in made.items()}


def _origins(model: PreTrainedModel, stored_names: Iterable[str]) -> dict[str, _Origin]:
    """Where each parameter that the checkpoint has comes from: what transformers' loader decides before it loads.

    As in transformers.core_model_loading.convert_and_load_state_dict_in_model.
    """
    wanted = model.state_dict()
    transforms = get_model_conversion_mapping(model)
    renamings = [each for each in transforms if isinstance(each, WeightRenaming)]
    converters = [each for each in transforms if isinstance(each, WeightConverter)]
    converter_of = {pattern: each for each in converters for pattern in each.source_patterns}
    prefix = model.base_model_prefix
    origins: dict[str, _Origin] = {}
    # In this order experts are joined: a conversion stacks tensors as they come.
    for stored in sorted(stored_names, key=dot_natural_key):
        name, pattern = rename_source_key(stored, renamings, converters, prefix, wanted)
        if name not in wanted and stored in wanted:
            name, pattern = rename_source_key(stored, [], [], prefix, wanted)
        if name not in wanted:
            continue  # what no model of this class reads, as an old checkpoint's RoPE tables
        converter = None if pattern is None else converter_of[pattern]
        if name not in origins:
            origin = _Origin(name, converter)
            targets = [name] if converter is None else [
                name.replace(converter.target_patterns[0], each) for each in converter.target_patterns
            ]  # fmt: skip
            origins |= dict.fromkeys(targets, origin)
        origins[name].stored.append((pattern or stored, stored))
    return origins


def _reason(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__

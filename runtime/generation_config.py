"""What the model's author recommends: the artifact's generation.json, as defaults for sampling and as end tokens."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

from pllm.runtime.errors import ArtifactError, RequestError
from pllm.runtime.sampling_params import SamplingParams
from pllm.runtime.tokenizer import Tokenizer, read_json

__all__ = ["GenerationConfig"]

_SAMPLING = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty")


@dataclass(frozen=True, slots=True)
class GenerationConfig:
    """``defaults``: fields of SamplingParams that the model sets; ``eos_token_ids``: tokens that end its answers.

    Precedence everywhere: what a request says, then this, then the neutral defaults of SamplingParams.
    """

    defaults: Mapping[str, Any] = field(default_factory=lambda: MappingProxyType({}))
    eos_token_ids: tuple[int, ...] = ()

    @classmethod
    def open(cls, path: Path) -> "GenerationConfig":
        """Read Hugging Face's generation_config.json; without the file all is neutral. Raises ArtifactError."""
        return cls.from_dict(read_json(path), source=str(path))

    @classmethod
    def from_dict(cls, config: Mapping[str, Any], *, source: str = "generation_config.json") -> "GenerationConfig":
        """Take what concerns sampling from ``config``; ``source`` names it in errors."""
        defaults = {name: config[name] for name in _SAMPLING if config.get(name) is not None}
        if config.get("max_new_tokens") is not None:
            defaults["max_tokens"] = config["max_new_tokens"]
        eos = config.get("eos_token_id")
        ids = tuple(eos) if isinstance(eos, list) else () if eos is None else (eos,)
        if not all(isinstance(token_id, int) and token_id >= 0 for token_id in ids):
            raise ArtifactError(f"{source}: eos_token_id must be a token id or a list of them, not {eos!r}.")
        try:
            SamplingParams(**defaults)
        except (RequestError, TypeError) as error:
            raise ArtifactError(f"{source}: {error}") from None
        return cls(MappingProxyType(defaults), ids)

    def end_tokens(self, tokenizer: Tokenizer) -> tuple[int, ...]:
        """What ends an answer: the model's end tokens, and then the tokenizer's own."""
        ends = dict.fromkeys(self.eos_token_ids)
        if tokenizer.eos_token_id is not None:
            ends.setdefault(tokenizer.eos_token_id)
        return tuple(ends)

    def sampling_params(self, *, fill_context: bool = False, **given: Any) -> SamplingParams:
        """SamplingParams with ``given`` over the model's defaults; None in ``given`` means not given.

        ``fill_context``: where nobody says max_tokens, an answer may fill the context, not only 16 tokens of it.
        Raises RequestError for a value out of range, and TypeError for a name that SamplingParams does not have.
        """
        fields: dict[str, Any] = {"max_tokens": None} if fill_context else {}
        fields |= self.defaults
        fields |= {name: value for name, value in given.items() if value is not None}
        return SamplingParams(**fields)

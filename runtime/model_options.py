"""``LLM``'s keywords, and the model that they lead to: found, built if need be, and opened."""

import json
import re
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pllm.runtime.errors import UserInputError
from pllm.runtime.generation_config import GenerationConfig
from pllm.runtime.intake import Intake
from pllm.runtime.tokenizer import Tokenizer

if TYPE_CHECKING:
    from pllm.runtime.engine_core import EngineCore

__all__ = ["ModelOptions", "open_model"]

_HUB_ID = re.compile(r"\w[\w.-]*/\w[\w.-]*")
_DTYPES = {"float": "float32", "half": "float16"}


@dataclass(frozen=True, kw_only=True)
class ModelOptions:
    """What ``LLM`` takes. What the build decides (first group) cannot be changed for an artifact that exists."""

    model: str
    """An artifact directory, a recipe (``.toml``), a checkpoint directory or a Hub id."""

    dtype: str = "auto"
    quantization: str | None = None
    revision: str | None = None
    max_num_batched_tokens: int | None = None
    block_size: int | None = None

    max_model_len: int | None = None
    """Tokens of a prompt and its answer together; an artifact's own can only be lowered."""
    max_num_seqs: int | None = None
    tokenizer: str | None = None
    """A directory with another ``tokenizer.json``."""
    chat_template: str | None = None
    """A file, a template as text, or one of the model's by name."""
    seed: int | None = 0
    """From which requests without a seed derive theirs; None draws from the operating system."""
    enable_prefix_caching: bool | None = None
    memory: str | float | int | None = None
    """What the engine may hold, weights included: ``"4GiB"``, or a share of what is free."""
    threads: int | None = None
    gpu_memory_utilization: float = 0.92
    """Of a GPU. On a CPU it has no meaning and is ignored: ``memory`` bounds the engine there."""
    tensor_parallel_size: int = 1

    @classmethod
    def of(cls, caller: str, model: str, given: Mapping[str, Any]) -> "ModelOptions":
        """Check keywords. Raises TypeError naming the nearest known one, UserInputError for what is not
        offered."""
        known = [field.name for field in fields(cls)]
        for name in given:
            if name not in known:
                from difflib import get_close_matches  # noqa: PLC0415  (10 ms that a start without mistakes saves)

                near = get_close_matches(name, known, n=1, cutoff=0.0)[0]
                raise TypeError(f"{caller} has no keyword {name!r}. Did you mean {near!r}?")
        options = cls(model=str(model), **given)
        if options.tensor_parallel_size != 1:
            raise UserInputError(
                f"tensor_parallel_size={options.tensor_parallel_size}: a model runs on one device here. Leave it out, "
                "and choose a smaller or quantised model where one device has too little memory."
            )
        return options

    def overrides(self) -> list[str]:
        """What the build is told, as ``section.key=value``."""
        values = {
            "model.dtype": None if self.dtype == "auto" else _DTYPES.get(self.dtype, self.dtype),
            "model.revision": self.revision,
            "quantization.weights": self.quantization,
            "engine.max_model_len": self.max_model_len,
            "engine.max_num_seqs": self.max_num_seqs,
            "engine.max_num_batched_tokens": self.max_num_batched_tokens,
            "engine.block_size": self.block_size,
        }
        # A string is quoted, as TOML and JSON do alike: a revision may look like a number.
        return [f"{key}={json.dumps(value)}" for key, value in values.items() if value is not None]

    def limits(self) -> dict[str, Any]:
        """What the engine is opened with; what was not said is left to the artifact."""
        names = ("max_num_seqs", "enable_prefix_caching", "memory", "threads")
        return {name: getattr(self, name) for name in names if getattr(self, name) is not None}

    def artifact(self) -> Path:
        """The artifact's directory, built first where there is none. Raises UserInputError for what is no model."""
        path = Path(self.model).expanduser()
        if (path / "manifest.json").is_file():
            self._refuse_what_was_decided()
            return path
        is_local = (path / "config.json").is_file() or (path.suffix == ".toml" and path.is_file())
        if is_local or (not path.exists() and _HUB_ID.fullmatch(self.model)):
            from pllm.runtime.build_cache import BuildCache  # noqa: PLC0415  (an artifact opens without it)

            return BuildCache().obtain(str(path.resolve()) if is_local else self.model, self.overrides())
        raise UserInputError(
            f"{self.model!r} is no model: give an artifact directory (made by pllm build), a recipe (.toml), a "
            "checkpoint directory (with config.json), or a Hub id such as Qwen/Qwen3-0.6B."
        )

    def _refuse_what_was_decided(self) -> None:
        decided = {field.name: field.default for field in fields(self) if field.name in _DECIDED_BY_BUILD}
        for name, default in decided.items():
            if getattr(self, name) != default:
                raise UserInputError(
                    f"{name} was decided when the artifact {self.model} was built. Leave it out, or give the recipe "
                    "or the checkpoint instead of the artifact: it is then built with your choice."
                )


_DECIDED_BY_BUILD = frozenset({"dtype", "quantization", "revision", "max_num_batched_tokens", "block_size"})


def open_model(options: ModelOptions, opened_part: Callable[[str], None] | None = None) -> "tuple[EngineCore, Intake]":
    """The engine and the way into it. The tokenizer is read beside the weights: it takes a core's time, but not
    Python's. ``opened_part`` is `EngineCore.open`'s.
    """
    artifact = options.artifact()
    from pllm.runtime.engine_core import EngineCore  # noqa: PLC0415  (native libraries: only where there is a model)

    limits = options.limits()
    if opened_part is not None:
        limits["opened_part"] = opened_part
    texts = artifact / "tokenizer" if options.tokenizer is None else Path(options.tokenizer).expanduser()
    with ThreadPoolExecutor(1) as beside:
        reading = beside.submit(Tokenizer.open, texts)
        core = EngineCore.open(artifact, **limits)
        try:
            tokenizer = reading.result()
            template = options.chat_template
            intake = Intake(
                tokenizer,
                GenerationConfig.open(artifact / "generation.json"),
                vocab_size=core.engine.config.vocab_size,
                max_model_len=_context(options, core.engine.config.max_model_len),
                chat_template=None if template is None else tokenizer.chosen_template(template),
            )
        except BaseException:
            core.close()
            raise
    return core, intake


def _context(options: ModelOptions, built: int) -> int:
    if options.max_model_len is None:
        return built
    if options.max_model_len > built:
        raise UserInputError(
            f"max_model_len={options.max_model_len} is more than the artifact was built for ({built}): build it again "
            f"with --set engine.max_model_len={options.max_model_len}."
        )
    return options.max_model_len

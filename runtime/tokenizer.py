"""The tokenizer of an artifact: `tokenizers` alone, set up as transformers sets up its fast tokenizers.

What transformers does to a tokenizer while loading it (tokens that only tokenizer_config.json knows, truncation taken
off) is done here in the same way, so that ids and text are the same. What a model's own tokenizer class does (as
transformers' LlamaTokenizer, which builds its pipeline anew) is settled by the build, which saves the tokenizer as
transformers made it.
"""

import json
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import tokenizers
from tokenizers import AddedToken

from pllm.runtime.errors import ArtifactError, RequestError
from pllm.runtime.token_decoder import TokenDecoder, clean_up

if TYPE_CHECKING:
    from pllm.runtime.chat_template import ChatTemplate

__all__ = ["Tokenizer", "read_json"]


class Tokenizer:
    """Text to ids and back, exactly as transformers' fast tokenizer of the same files.

    ``special_tokens``: the named ones, such as ``{"eos_token": "<|im_end|>"}``. ``added_ids``: tokens outside the
    model's own vocabulary; ``special_ids``: those of them that ``skip_special_tokens`` drops.
    """

    def __init__(
        self, backend: tokenizers.Tokenizer, config: Mapping[str, Any], chat_templates: Mapping[str, str] | None = None
    ) -> None:
        self.special_tokens = _set_up(backend, config)
        self._backend = backend
        added = backend.get_added_tokens_decoder()
        self.added_ids = frozenset(added)
        self.special_ids = frozenset(token_id for token_id, token in added.items() if token.special)
        is_bpe = type(backend.model).__name__ == "BPE"
        self._cleans_up = bool(config.get("clean_up_tokenization_spaces", False)) and (
            not is_bpe or bool(config.get("clean_up_tokenization_spaces_for_bpe_even_though_it_will_corrupt_output"))
        )
        self.decoder = TokenDecoder(backend, clean_up_spaces=self._cleans_up)
        self._chat_templates = chat_templates
        self._token_texts: dict[int, str] = {}

    @classmethod
    def open(cls, directory: Path) -> "Tokenizer":
        """Read ``tokenizer.json`` and what stands beside it. Raises ArtifactError naming the file at fault."""
        path = directory / "tokenizer.json"
        if not path.is_file():
            raise ArtifactError(f"{path} is missing; build the artifact again from a checkpoint with a fast tokenizer.")
        try:
            backend = tokenizers.Tokenizer.from_file(str(path))
        except Exception as error:  # the Rust side raises a bare Exception for a file it cannot read
            raise ArtifactError(
                f"{path} is no tokenizer that tokenizers {tokenizers.__version__} reads: {error}"
            ) from None
        config = read_json(directory / "tokenizer_config.json")
        if "added_tokens_decoder" not in config:
            # Checkpoints of before 2023 keep the special tokens in a file of their own.
            config |= read_json(directory / "special_tokens_map.json")
        try:
            return cls(backend, config, _template_sources(directory, config))
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            cause = f"{directory / 'tokenizer_config.json'} is not what transformers writes: {error!r}"
            raise ArtifactError(cause) from error

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        """The ids of ``text``. Raises RequestError for text that is no Unicode (a lone surrogate)."""
        try:
            # A batch of one releases the GIL, and the fast form leaves out offsets; both give the same ids.
            ids: list[int] = self._backend.encode_batch_fast([text], add_special_tokens=add_special_tokens)[0].ids
        except (UnicodeEncodeError, TypeError) as error:
            if isinstance(text, str):
                raise RequestError(
                    f"The text is not valid Unicode: {_surrogate_place(text)}", param="prompt"
                ) from error
            raise
        return ids

    def decode(self, token_ids: int | Sequence[int], skip_special_tokens: bool = False) -> str:
        """The text of ``token_ids``; ids without a token have none."""
        ids = [token_ids] if isinstance(token_ids, int) else list(token_ids)
        text: str = self._backend.decode(ids, skip_special_tokens=skip_special_tokens)
        return clean_up(text) if self._cleans_up else text

    @cached_property
    def chat_template(self) -> "ChatTemplate | None":
        """The model's own; None for a base model."""
        from pllm.runtime.chat_template import ChatTemplate  # noqa: PLC0415  (Jinja: 30 ms that plain prompts save)

        return ChatTemplate(self._chat_templates, self.special_tokens) if self._chat_templates else None

    def chosen_template(self, template: str) -> "ChatTemplate":
        """Another template than the model's default: one of its own by name, a file's, or one that is given as text.

        Raises UserInputError for a file that cannot be read and ArtifactError for a template that is not safe.
        """
        from pllm.runtime.chat_template import ChatTemplate  # noqa: PLC0415  (as above)

        if self._chat_templates and template in self._chat_templates:
            return ChatTemplate({"default": self._chat_templates[template]}, self.special_tokens)
        return ChatTemplate.choose(template, self.special_tokens)

    def apply_chat_template(
        self,
        conversation: Sequence[Mapping[str, Any]],
        tools: Sequence[Mapping[str, Any]] | None = None,
        *,
        chat_template: str | None = None,
        add_generation_prompt: bool = False,
        continue_final_message: bool | str = False,
        tokenize: bool = True,
        **template_arguments: Any,
    ) -> str | list[int]:
        """The prompt for a conversation, as ids or, without ``tokenize``, as text. The names are transformers'."""
        template = self.chat_template if chat_template is None else self.chosen_template(chat_template)
        if template is None:
            raise RequestError(
                "This model has no chat template; pass chat_template, or complete a plain prompt instead."
            )
        text = template.render(
            conversation,
            tools,
            add_generation_prompt=add_generation_prompt,
            continue_final_message=continue_final_message,
            **template_arguments,
        )
        return self.encode(text, add_special_tokens=False) if tokenize else text

    def token_to_id(self, token: str) -> int | None:
        """The id of exactly this token, None if there is no such token."""
        return self._backend.token_to_id(token)

    def id_to_token(self, token_id: int) -> str | None:
        """The token as the vocabulary spells it, None for an id without one."""
        return self._backend.id_to_token(token_id)

    def token_text(self, token_id: int) -> str:
        """The text of one token amid others; U+FFFD where it is only part of a character."""
        text = self._token_texts.get(token_id)
        if text is None:
            token = self.id_to_token(token_id)
            stream = self.decoder.start(continues=True)
            text = "" if token is None else stream.feed(token) + stream.flush()
            self._token_texts[token_id] = text
        return text

    def token_bytes(self, token_id: int) -> bytes:
        """The UTF-8 bytes that one token amid others stands for: whole characters or a part of one."""
        token = self.id_to_token(token_id)
        exact = None if token is None else self.decoder.token_bytes(token)
        return self.token_text(token_id).encode() if exact is None else exact

    def get_vocab(self) -> dict[str, int]:
        """Every token and its id, added tokens included."""
        vocab: dict[str, int] = self._backend.get_vocab(with_added_tokens=True)
        return vocab

    def __len__(self) -> int:
        return self.vocab_size

    @cached_property
    def vocab_size(self) -> int:
        """How many tokens there are, added tokens included; the model's own vocabulary may be padded beyond it."""
        return int(self._backend.get_vocab_size(with_added_tokens=True))

    @property
    def bos_token_id(self) -> int | None:
        """The id of the token that begins a text, if the model has one."""
        return self._special_id("bos_token")

    @property
    def eos_token_id(self) -> int | None:
        """The id of the token that ends a text, if the model has one."""
        return self._special_id("eos_token")

    @property
    def pad_token_id(self) -> int | None:
        """The id of the token that fills up a batch, if the model has one."""
        return self._special_id("pad_token")

    def _special_id(self, name: str) -> int | None:
        token = self.special_tokens.get(name)
        return None if token is None else self.token_to_id(token)

    def __repr__(self) -> str:
        return f"Tokenizer({type(self._backend.model).__name__}, {self.vocab_size} tokens)"


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file; empty if there is no such file. Raises ArtifactError for anything else."""
    try:
        value = json.loads(path.read_bytes())
    except FileNotFoundError:
        return {}
    except (ValueError, RecursionError) as error:
        raise ArtifactError(f"{path} is not valid JSON: {error}") from None
    if not isinstance(value, dict):
        raise ArtifactError(f"{path} must hold a JSON object.")
    return value


def _set_up(backend: tokenizers.Tokenizer, config: Mapping[str, Any]) -> dict[str, str]:
    """Bring ``backend`` into the state that transformers' loading leaves it in; the named special tokens."""
    backend.no_truncation()
    backend.no_padding()
    backend.encode_special_tokens = bool(config.get("split_special_tokens", False))

    held = backend.get_added_tokens_decoder()
    if "added_tokens_decoder" in config:
        declared = [_added(token) for _, token in sorted(config["added_tokens_decoder"].items(), key=_by_id)]
    else:
        declared = [token for _, token in sorted(held.items())]
    by_content = {token.content: token for token in declared}
    known = {token.content for token in held.values()} | set(by_content)
    named: dict[str, AddedToken] = {}
    for key, value in config.items():
        if key.endswith("_token") and isinstance(value, str | dict):
            token = _added(value, special=True)
            named[key] = by_content.get(token.content, token)
    extra = config.get("extra_special_tokens") or config.get("additional_special_tokens") or []
    if isinstance(extra, dict):
        named |= {key: _added(value, special=True) for key, value in extra.items()}
        extra = []
    missing = [*named.values(), *(_added(token, special=True) for token in extra)]
    tokens = [*declared, *(token for token in missing if token.content not in known)]
    for token in tokens:
        token.special = token.special or any(token.content == other.content for other in named.values())
    backend.add_tokens(tokens)

    return {key: token.content for key, token in named.items()}


def _template_sources(directory: Path, config: Mapping[str, Any]) -> dict[str, str]:
    """The chat templates of a tokenizer's directory by name, in transformers' order of precedence."""
    sources: dict[str, str] = {}
    main = directory / "chat_template.jinja"
    if main.is_file():
        sources["default"] = main.read_text(encoding="utf-8")
    for path in sorted((directory / "additional_chat_templates").glob("*.jinja")):
        sources[path.stem] = path.read_text(encoding="utf-8")
    if sources:
        return sources
    declared = config.get("chat_template")
    if isinstance(declared, str):
        return {"default": declared}
    if isinstance(declared, Mapping):
        return {str(name): str(template) for name, template in declared.items()}
    return {str(entry["name"]): str(entry["template"]) for entry in declared or ()}


def _by_id(item: tuple[str, Any]) -> int:
    return int(item[0])


def _added(token: str | Mapping[str, Any], *, special: bool = False) -> AddedToken:
    """A token as tokenizer_config.json writes it: its content alone, or with its properties."""
    if isinstance(token, str):
        return AddedToken(token, special=special)
    fields = {key: value for key, value in token.items() if key not in {"__type", "id"}}
    return AddedToken(**({"special": special} | fields))


def _surrogate_place(text: str) -> str:
    place = next((i for i, character in enumerate(text) if "\ud800" <= character <= "\udfff"), 0)
    return f"character {place} (U+{ord(text[place]):04X}) is half of a surrogate pair."

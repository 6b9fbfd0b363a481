"""What a client asks, turned into what the engine takes: the one way in for the library and for the server."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import msgspec

from pllm.runtime.conversation import readable_message
from pllm.runtime.errors import ContextLengthExceededError, RequestError
from pllm.runtime.generation_config import GenerationConfig
from pllm.runtime.request_text import RequestText
from pllm.runtime.sampling_params import SamplingParams
from pllm.runtime.sequence import Request
from pllm.runtime.tokenizer import Tokenizer

if TYPE_CHECKING:
    from pllm.runtime.chat_template import ChatTemplate

__all__ = ["Intake", "Prompt"]


@dataclass(frozen=True, slots=True)
class Prompt:
    """A prompt ready for the engine. ``text`` is None where ids were given; ``is_chat``: a template rendered it."""

    token_ids: tuple[int, ...]
    text: str | None = None
    is_chat: bool = False


class Intake:
    """Prompts, defaults and limits of one model.

    ``vocab_size``: rows of the model's embedding (the tokenizer may have fewer ids); ``max_model_len``: tokens of a
    prompt and its answer together. ``chat_template`` replaces the model's own: the operator's choice, never a
    request's.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        generation: GenerationConfig,
        *,
        vocab_size: int,
        max_model_len: int,
        chat_template: "ChatTemplate | None" = None,
    ) -> None:
        self.tokenizer = tokenizer
        self.generation = generation
        self.vocab_size, self.max_model_len = vocab_size, max_model_len
        self._chat_template = chat_template
        self.eos_token_ids = generation.end_tokens(tokenizer)

    def prompt(self, prompt: str | Sequence[int] | Mapping[str, Any]) -> Prompt:
        """A prompt as vLLM's users write it: text, token ids, ``{"prompt": text}`` or ``{"prompt_token_ids": ids}``.

        Raises RequestError for anything else, for an empty prompt and for ids outside the vocabulary.
        """
        text: str | None = None
        if isinstance(prompt, Mapping):
            text = prompt.get("prompt")
            given = prompt.get("prompt_token_ids", text)
        else:
            given = prompt
        if isinstance(given, str):
            return self._checked(Prompt(tuple(self.tokenizer.encode(given)), given))
        if not isinstance(given, Sequence) or not all(type(token_id) is int for token_id in given):
            raise RequestError(
                "A prompt is a string, a list of token ids, or a dictionary with one of them under "
                f"'prompt' or 'prompt_token_ids'; this is a {type(prompt).__name__}.",
                param="prompt",
            )
        return self._checked(Prompt(tuple(given), text))

    def chat_prompt(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        chat_template: "ChatTemplate | None" = None,
        add_generation_prompt: bool = True,
        continue_final_message: bool | str = False,
        **variables: Any,
    ) -> Prompt:
        """The prompt of a conversation by the model's chat template. ``variables`` reach the template by their names.

        Raises RequestError, also for a model without a template and for content that is not text.
        """
        template = chat_template or self._chat_template or self.tokenizer.chat_template
        if template is None:
            raise RequestError(
                "This model has no chat template, so it takes no conversations: complete a plain prompt, or start it "
                "with --chat-template FILE.",
                param="messages",
            )
        in_parts = template.wants_content_parts(with_tools=tools is not None)
        if "developer" not in template.source(with_tools=tools is not None):
            # OpenAI's newer word for the system's messages: a template that does not know it would drop them.
            messages = [{**message, "role": "system"} if _is_developer(message) else message for message in messages]
        text = template.render(
            [readable_message(message, in_parts=in_parts) for message in messages],
            tools,
            add_generation_prompt=add_generation_prompt,
            continue_final_message=continue_final_message,
            **variables,
        )
        return self._checked(Prompt(tuple(self.tokenizer.encode(text, add_special_tokens=False)), text, is_chat=True))

    def request(
        self,
        request_id: str,
        prompt: Prompt,
        params: SamplingParams,
        *,
        priority: int = 0,
        cache_salt: str = "",
        arrival_time: float | None = None,
    ) -> RequestText:
        """The request for the engine (``.request``) and the text side of it in one.

        Answers are limited to what the context has room for. Raises ContextLengthExceededError when that is nothing,
        and RequestError for token ids in ``params`` outside the vocabulary.
        """
        room = self.max_model_len - len(prompt.token_ids)
        if room < 1:
            param = "messages" if prompt.is_chat else "prompt"
            raise ContextLengthExceededError(self.max_model_len, len(prompt.token_ids), param=param)
        self._check_token_ids(params)
        if params.max_tokens is None or params.max_tokens > room:
            params = msgspec.structs.replace(params, max_tokens=room)
        request = Request(
            request_id=request_id,
            prompt_token_ids=prompt.token_ids,
            params=params,
            eos_token_ids=self.eos_token_ids,
            arrival_time=time.monotonic() if arrival_time is None else arrival_time,
            cache_salt=cache_salt,
            priority=priority,
            bad_words_token_ids=self.bad_words_token_ids(params.bad_words or ()),
        )
        return RequestText(request, self.tokenizer, prompt.text, continues=not prompt.is_chat)

    def bad_words_token_ids(self, words: Sequence[str]) -> tuple[tuple[int, ...], ...]:
        """How the tokenizer spells each word at a beginning and after a space: what must not be completed (as vLLM)."""
        spellings: list[tuple[int, ...]] = []
        for word in words:
            bare = tuple(self.tokenizer.encode(word.lstrip(), add_special_tokens=False))
            spaced = tuple(self.tokenizer.encode(" " + word.lstrip(), add_special_tokens=False))
            if not bare:
                raise RequestError(f"The bad word {word!r} has no tokens.", param="bad_words")
            spellings.append(bare)
            if len(spaced) == len(bare) and spaced[0] != bare[0]:
                spellings.append(spaced)
        return tuple(spellings)

    def _checked(self, prompt: Prompt) -> Prompt:
        if not prompt.token_ids:
            raise RequestError("The prompt is empty.", param="messages" if prompt.is_chat else "prompt")
        self.check_ids(prompt.token_ids, "prompt")
        return prompt

    def _check_token_ids(self, params: SamplingParams) -> None:
        self.check_ids(params.stop_token_ids or (), "stop_token_ids")
        self.check_ids(params.allowed_token_ids or (), "allowed_token_ids")
        self.check_ids(params.logit_bias or (), "logit_bias")

    def check_ids(self, token_ids: Sequence[int] | Mapping[int, Any], param: str) -> None:
        """Raises RequestError for a token id that is outside of the vocabulary."""
        if token_ids and not (min(token_ids) >= 0 and max(token_ids) < self.vocab_size):
            wrong = next(token_id for token_id in token_ids if not 0 <= token_id < self.vocab_size)
            raise RequestError(f"Token id {wrong} is outside the vocabulary of {self.vocab_size} tokens.", param=param)


def _is_developer(message: object) -> bool:
    return isinstance(message, Mapping) and message.get("role") == "developer"

"""What the server answers, field by field as OpenAI's clients read it, with vLLM's stop_reason and prompt_logprobs."""

from typing import Any, Literal

import msgspec
from msgspec import UNSET, UnsetType

__all__ = [
    "AnsweredCall",
    "CalledFunction",
    "ChatChoice",
    "ChatChunk",
    "ChatChunkChoice",
    "ChatCompletion",
    "ChatDelta",
    "ChatLogprobs",
    "ChatMessage",
    "Completion",
    "CompletionChoice",
    "CompletionLogprobs",
    "CompletionTokensDetails",
    "Detokenized",
    "ModelCard",
    "ModelList",
    "PromptTokensDetails",
    "TokenLogprob",
    "Tokenized",
    "TopLogprob",
    "Usage",
    "VersionAnswer",
]

FinishReason = Literal["stop", "length", "tool_calls", "abort", "error"]
PromptLogprobs = list[dict[str, dict[str, Any]] | None]


class PromptTokensDetails(msgspec.Struct, frozen=True):
    """How many of the prompt's tokens came from the prefix cache."""

    cached_tokens: int


class CompletionTokensDetails(msgspec.Struct, frozen=True):
    """How many of the answers' tokens are thoughts, the marker that ends them included."""

    reasoning_tokens: int


class Usage(msgspec.Struct, frozen=True):
    """Tokens read and written by a request, all its answers together."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptTokensDetails
    completion_tokens_details: CompletionTokensDetails


class TopLogprob(msgspec.Struct):
    """A likely token at some place; ``bytes`` are its UTF-8 bytes, which may be part of a character."""

    token: str
    logprob: float
    bytes: list[int]


class TokenLogprob(msgspec.Struct):
    """The token at some place, and the likeliest ones there."""

    token: str
    logprob: float
    bytes: list[int]
    top_logprobs: list[TopLogprob]


class ChatLogprobs(msgspec.Struct):
    """One entry a token of the answer."""

    content: list[TokenLogprob]
    refusal: None = None


class CalledFunction(msgspec.Struct, omit_defaults=True):
    """A function's name, and the text of its arguments: a JSON object, unless the answer was cut off. In a stream's
    later chunks the name is absent."""

    arguments: str
    name: str | None = None


class AnsweredCall(msgspec.Struct, omit_defaults=True):
    """A call of a tool. In a stream ``index`` says which, and its later chunks have nothing but more arguments."""

    function: CalledFunction
    index: int | None = None
    id: str | None = None
    type: str | None = None


class ChatMessage(msgspec.Struct):
    """The model's message. Its thoughts stand under both names that clients have for them."""

    content: str | None
    role: Literal["assistant"] = "assistant"
    refusal: None = None
    tool_calls: list[AnsweredCall] | UnsetType = UNSET
    reasoning_content: str | UnsetType = UNSET
    reasoning: str | UnsetType = UNSET


class ChatChoice(msgspec.Struct):
    """One of the n answers."""

    index: int
    message: ChatMessage
    logprobs: ChatLogprobs | None
    finish_reason: FinishReason | None
    stop_reason: int | str | None


class ChatCompletion(msgspec.Struct, kw_only=True):
    """The answer of ``/v1/chat/completions``."""

    id: str
    object: Literal["chat.completion"] = "chat.completion"
    created: int
    model: str
    choices: list[ChatChoice]
    usage: Usage
    system_fingerprint: None = None
    service_tier: None = None
    prompt_logprobs: PromptLogprobs | None = None


class ChatDelta(msgspec.Struct, omit_defaults=True):
    """What a chunk adds to a message."""

    role: Literal["assistant"] | None = None
    content: str | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None
    tool_calls: list[AnsweredCall] | None = None


class ChatChunkChoice(msgspec.Struct):
    """One answer's part of a chunk."""

    index: int
    delta: ChatDelta
    logprobs: ChatLogprobs | None = None
    finish_reason: FinishReason | None = None
    stop_reason: int | str | UnsetType | None = UNSET


class ChatChunk(msgspec.Struct, kw_only=True):
    """One event of a streamed chat completion. ``usage`` is absent unless the client asked for it."""

    id: str
    object: Literal["chat.completion.chunk"] = "chat.completion.chunk"
    created: int
    model: str
    choices: list[ChatChunkChoice]
    system_fingerprint: None = None
    usage: Usage | UnsetType | None = UNSET


class CompletionLogprobs(msgspec.Struct):
    """Four lists with one entry a token; ``text_offset`` counts characters from the answer's beginning."""

    text_offset: list[int]
    token_logprobs: list[float | None]
    tokens: list[str]
    top_logprobs: list[dict[str, float] | None]


class CompletionChoice(msgspec.Struct):
    """One answer to one prompt, or what a chunk adds to it."""

    index: int
    text: str
    logprobs: CompletionLogprobs | None = None
    finish_reason: FinishReason | None = None
    stop_reason: int | str | None = None
    prompt_logprobs: PromptLogprobs | UnsetType | None = UNSET


class Completion(msgspec.Struct, kw_only=True):
    """The answer of ``/v1/completions``, and each event of its stream (where ``usage`` is absent unless asked for)."""

    id: str
    object: Literal["text_completion"] = "text_completion"
    created: int
    model: str
    choices: list[CompletionChoice]
    system_fingerprint: None = None
    usage: Usage | UnsetType | None = UNSET


class ModelCard(msgspec.Struct, frozen=True, kw_only=True):
    """A name that this server answers to."""

    id: str
    object: Literal["model"] = "model"
    created: int
    root: str
    max_model_len: int
    owned_by: str = "pllm"
    parent: None = None
    permission: tuple[dict[str, Any], ...] = ()


class ModelList(msgspec.Struct, frozen=True, kw_only=True):
    """The answer of ``/v1/models``."""

    object: Literal["list"] = "list"
    data: tuple[ModelCard, ...]


class Tokenized(msgspec.Struct, frozen=True):
    """The answer of ``/tokenize``."""

    count: int
    max_model_len: int
    tokens: list[int]
    token_strs: list[str] | None = None


class Detokenized(msgspec.Struct, frozen=True):
    """The answer of ``/detokenize``."""

    prompt: str


class VersionAnswer(msgspec.Struct, frozen=True):
    """The answer of ``/version``."""

    version: str

"""``/v1/chat/completions``: a conversation in, the next message out."""

import time
from collections.abc import Iterable
from typing import Any

import msgspec

from pllm.runtime.request_text import RequestText, TextDelta
from pllm.runtime.sampling_params import SamplingParams
from pllm.runtime.server.identity import new_id
from pllm.runtime.server.model import ServedModel
from pllm.runtime.server.protocol.answers import (
    ChatChoice,
    ChatChunk,
    ChatChunkChoice,
    ChatCompletion,
    ChatDelta,
    ChatLogprobs,
    ChatMessage,
)
from pllm.runtime.server.protocol.conversation import conversation_of
from pllm.runtime.server.protocol.errors import ErrorAnswer, error_answer
from pllm.runtime.server.protocol.forms import RequestedForm, requested_form
from pllm.runtime.server.protocol.logprobs import chat_logprobs, prompt_logprobs
from pllm.runtime.server.protocol.params import chat_params
from pllm.runtime.server.protocol.parse import Parsed
from pllm.runtime.server.protocol.requests import ChatCompletionRequest, Message
from pllm.runtime.server.usage import usage_of

__all__ = ["ChatAnswer"]


class ChatAnswer:
    """One chat completion. Tool calls are not parsed: what the model writes is the content, ``<tool_call>`` and all."""

    last_words = b"data: [DONE]\n\n"

    def __init__(self, request: ChatCompletionRequest, model: ServedModel) -> None:
        self._model = model
        self._name = model.name_for(request.model)
        self._params = chat_params(request, model.intake.generation, model.info.max_model_len)
        self._form: RequestedForm | None = None
        self._id = new_id("chatcmpl")
        self._created = int(time.time())
        self._top_logprobs = request.top_logprobs or 0
        options = request.stream_options
        self._usage_at_end = options is not None and bool(options.include_usage)
        self._usage_always = options is not None and bool(options.continuous_usage_stats)

    @property
    def params(self) -> SamplingParams:
        """How its tokens are chosen."""
        return self._params

    @property
    def num_prompts(self) -> int:
        """A conversation is one prompt."""
        return 1

    @property
    def form_field(self) -> str:
        """The request's field that asks for a form."""
        return "response_format" if self._form is None else self._form.field

    def prepare(self, parsed: Parsed[ChatCompletionRequest]) -> list[RequestText]:
        """The conversation through the chat template, as token ids."""
        request, intake = parsed.request, self._model.intake
        conversation = conversation_of(parsed)
        self._form = requested_form(request)
        if self._form is not None:
            self._params = msgspec.structs.replace(self._params, structured_outputs=self._form.params)
        self._model.check_size(sum(map(_content_size, request.messages)), "messages")
        prompt = intake.chat_prompt(**conversation)
        return [
            intake.request(
                self._id,
                prompt,
                self._params,
                priority=request.priority or 0,
                cache_salt=request.cache_salt or "",
            )
        ]

    def whole(self, texts: list[RequestText]) -> ChatCompletion:
        """All n messages."""
        output = texts[0].output()
        choices = [
            ChatChoice(
                index=answer.index,
                message=ChatMessage(answer.text),
                logprobs=self._logprobs(answer.token_ids, answer.logprobs),
                finish_reason=answer.finish_reason,  # type: ignore[arg-type]  # the engine's words are OpenAI's
                stop_reason=answer.stop_reason,
            )
            for answer in output.outputs
        ]
        return ChatCompletion(
            id=self._id,
            created=self._created,
            model=self._name,
            choices=choices,
            usage=usage_of(texts),
            prompt_logprobs=prompt_logprobs(output.prompt_logprobs),
        )

    def opening(self, texts: list[RequestText]) -> Iterable[ChatChunk]:
        """One chunk an answer, with the role."""
        for index in range(self._params.n):
            yield self._chunk(texts, [ChatChunkChoice(index, ChatDelta(role="assistant", content=""))])

    def chunk(self, texts: list[RequestText], number: int, delta: TextDelta) -> Iterable[ChatChunk]:
        """The new text of one answer; nothing while its tokens make no text yet and nobody counts them."""
        shown = delta.text or delta.finish_reason is not None or delta.logprobs is not None
        if not shown and not self._usage_always:
            return
        choice = ChatChunkChoice(
            number,
            ChatDelta(content=delta.text) if delta.text or delta.finish_reason is None else ChatDelta(),
            self._logprobs(delta.token_ids, delta.logprobs),
        )
        if delta.finish_reason is not None:
            choice.finish_reason = delta.finish_reason  # type: ignore[assignment]
            choice.stop_reason = delta.stop_reason
        yield self._chunk(texts, [choice])

    def closing(self, texts: list[RequestText]) -> Iterable[ChatChunk]:
        """The usage, if it was asked for, in a chunk without choices."""
        if self._usage_at_end:
            chunk = self._chunk(texts, [])
            chunk.usage = usage_of(texts)
            yield chunk

    def failed(self, error: Exception) -> Iterable[ErrorAnswer]:
        """The error, in place of what is missing."""
        yield error_answer(error)[1]

    def _chunk(self, texts: list[RequestText], choices: list[ChatChunkChoice]) -> ChatChunk:
        chunk = ChatChunk(id=self._id, created=self._created, model=self._name, choices=choices)
        if self._usage_always:
            chunk.usage = usage_of(texts)
        elif self._usage_at_end:
            chunk.usage = None
        return chunk

    def _logprobs(self, token_ids: list[int], positions: list[Any] | None) -> ChatLogprobs | None:
        if self._params.logprobs is None:
            return None
        return chat_logprobs(self._model.intake.tokenizer, token_ids, positions or [], self._top_logprobs)


def _content_size(message: Message) -> int:
    """Characters of a message's content."""
    content = message.content
    if isinstance(content, list):
        return sum(len(part) if isinstance(part, str) else len(part.text or "") for part in content)
    return len(content or "")

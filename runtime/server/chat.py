"""``/v1/chat/completions``: a conversation in, the next message out."""

import time
from collections.abc import Iterable
from typing import Any

import msgspec

from pllm.runtime.errors import RequestError
from pllm.runtime.message.thought_tokens import ThoughtTokens
from pllm.runtime.request_text import RequestText, TextDelta
from pllm.runtime.sampling_params import SamplingParams
from pllm.runtime.server.chat_message import MessageText
from pllm.runtime.server.identity import new_id
from pllm.runtime.server.model import ServedModel
from pllm.runtime.server.protocol.answers import (
    ChatChoice,
    ChatChunk,
    ChatChunkChoice,
    ChatCompletion,
    ChatDelta,
    ChatLogprobs,
    Usage,
)
from pllm.runtime.server.protocol.conversation import conversation_of
from pllm.runtime.server.protocol.errors import ErrorAnswer, error_answer
from pllm.runtime.server.protocol.forms import requested_form
from pllm.runtime.server.protocol.logprobs import chat_logprobs, prompt_logprobs
from pllm.runtime.server.protocol.params import chat_params
from pllm.runtime.server.protocol.parse import Parsed
from pllm.runtime.server.protocol.requests import ChatCompletionRequest, Message
from pllm.runtime.server.protocol.tools import OfferedTools
from pllm.runtime.server.usage import usage_of
from pllm.runtime.structured_outputs import StructuredOutputsParams

__all__ = ["ChatAnswer"]


class ChatAnswer:
    """One chat completion: what the model writes, told apart into thoughts, calls of tools and content."""

    last_words = b"data: [DONE]\n\n"

    def __init__(self, request: ChatCompletionRequest, model: ServedModel) -> None:
        self._model = model
        self._name = model.name_for(request.model)
        self._params = chat_params(request, model.intake.generation, model.info.max_model_len)
        self._form_field = "response_format"
        self._tools = OfferedTools()
        self._messages: list[MessageText] = []
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
        return self._form_field

    def prepare(self, parsed: Parsed[ChatCompletionRequest]) -> list[RequestText]:
        """The conversation through the chat template, as token ids."""
        request, intake = parsed.request, self._model.intake
        conversation = conversation_of(parsed)
        self._tools = OfferedTools.of(parsed)
        self._model.check_size(sum(map(_content_size, request.messages)), "messages")
        prompt = intake.chat_prompt(**conversation)
        self._keep_form(request, prompt.text or "")
        self._listen(prompt.text or "")
        return [
            intake.request(
                self._id,
                prompt,
                self._params,
                priority=request.priority or 0,
                cache_salt=request.cache_salt or "",
            )
        ]

    def _keep_form(self, request: ChatCompletionRequest, prompt: str) -> None:
        """See to it that calls are made where they are demanded, that they are right where they are strict, and that
        the answer has the form that the request asks for."""
        form, tools = requested_form(request, self._model.forms), self._tools
        grammar = self._model.answer_grammar
        wanted: StructuredOutputsParams | None = None
        if tools.demanded and form is not None:
            message = f"'{form.field}' and a 'tool_choice' that demands a call exclude each other."
            raise RequestError(message, param=form.field, code="invalid_value")
        self._form_field = "tools" if form is None else form.field
        try:
            if tools.demanded:
                wanted = grammar.calls(tools.demanded, prompt, several=tools.parallel)
            elif tools.tools:
                wanted = grammar.choice(
                    tools.tools, prompt, several=tools.parallel, form=None if form is None else form.params
                )
            elif form is not None:
                wanted = grammar.form(form.params, prompt)
        except RequestError as error:
            raise RequestError(error.message, param=self._form_field, code=error.code) from None
        if wanted is not None:
            self._params = msgspec.structs.replace(self._params, structured_outputs=wanted)

    def _listen(self, prompt: str) -> None:
        """A reader for each answer. What they listen for must be in the text, be it a special token."""
        style, tokenizer = self._model.style, self._model.intake.tokenizer
        begun = style.begins_with_thoughts(prompt)
        self._messages = [
            MessageText(
                style.reader(
                    prompt, self._tools.names, forced=bool(self._tools.demanded), parallel=self._tools.parallel
                ),
                short_ids=style.calls == "mistral",
                thoughts=ThoughtTokens(tokenizer, begun=begun) if style.thinks else None,
            )
            for _ in range(self._params.n)
        ]
        if (self._tools.names or style.thinks) and any(
            tokenizer.token_to_id(marker) in tokenizer.special_ids for marker in style.markers
        ):
            self._params = msgspec.structs.replace(self._params, skip_special_tokens=False)

    def _finish_reason(self, index: int, reason: str | None) -> Any:
        """OpenAI's word for an end with calls, unless the call was the client's choice."""
        calls = self._messages[index].num_calls and not self._tools.is_named
        return "tool_calls" if calls and reason == "stop" else reason

    def whole(self, texts: list[RequestText]) -> ChatCompletion:
        """All n messages."""
        output = texts[0].output()
        messages = [self._messages[answer.index].whole(answer.text, answer.token_ids) for answer in output.outputs]
        choices = [
            ChatChoice(
                index=answer.index,
                message=message,
                logprobs=self._logprobs(answer.token_ids, answer.logprobs),
                finish_reason=self._finish_reason(answer.index, answer.finish_reason),
                stop_reason=answer.stop_reason,
            )
            for answer, message in zip(output.outputs, messages, strict=True)
        ]
        return ChatCompletion(
            id=self._id,
            created=self._created,
            model=self._name,
            choices=choices,
            usage=self.usage(texts),
            prompt_logprobs=prompt_logprobs(output.prompt_logprobs),
        )

    def opening(self, texts: list[RequestText]) -> Iterable[ChatChunk]:
        """One chunk an answer, with the role."""
        for index in range(self._params.n):
            yield self._chunk(texts, [ChatChunkChoice(index, ChatDelta(role="assistant", content=""))])

    def chunk(self, texts: list[RequestText], number: int, delta: TextDelta) -> Iterable[ChatChunk]:
        """The new text of one answer; nothing while its tokens make no text yet and nobody counts them."""
        added = self._messages[number].add(delta.text, delta.token_ids, final=delta.finish_reason is not None)
        is_empty = added == ChatDelta()
        if is_empty and delta.finish_reason is None and delta.logprobs is None and not self._usage_always:
            return
        if is_empty and delta.finish_reason is None:
            added.content = ""
        choice = ChatChunkChoice(number, added, self._logprobs(delta.token_ids, delta.logprobs))
        if delta.finish_reason is not None:
            choice.finish_reason = self._finish_reason(number, delta.finish_reason)
            choice.stop_reason = delta.stop_reason
        yield self._chunk(texts, [choice])

    def closing(self, texts: list[RequestText]) -> Iterable[ChatChunk]:
        """The usage, if it was asked for, in a chunk without choices."""
        if self._usage_at_end:
            chunk = self._chunk(texts, [])
            chunk.usage = self.usage(texts)
            yield chunk

    def usage(self, texts: list[RequestText]) -> Usage:
        """The tokens so far."""
        return usage_of(texts, reasoning=sum(message.num_thought_tokens for message in self._messages))

    def failed(self, error: Exception) -> Iterable[ErrorAnswer]:
        """The error, in place of what is missing."""
        yield error_answer(error)[1]

    def _chunk(self, texts: list[RequestText], choices: list[ChatChunkChoice]) -> ChatChunk:
        chunk = ChatChunk(id=self._id, created=self._created, model=self._name, choices=choices)
        if self._usage_always:
            chunk.usage = self.usage(texts)
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

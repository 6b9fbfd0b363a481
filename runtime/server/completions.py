"""``/v1/completions``: plain prompts in, what follows them out."""

import time
from collections.abc import Iterable, Sequence

import msgspec

from pllm.runtime.intake import Prompt
from pllm.runtime.outputs import CompletionOutput, RequestOutput, TokenLogprobDict
from pllm.runtime.request_text import RequestText, TextDelta
from pllm.runtime.server.identity import new_id
from pllm.runtime.server.model import ServedModel
from pllm.runtime.server.protocol.answers import Completion, CompletionChoice, CompletionLogprobs
from pllm.runtime.server.protocol.errors import ErrorAnswer, error_answer
from pllm.runtime.server.protocol.forms import RequestedForm, requested_form
from pllm.runtime.server.protocol.logprobs import completion_logprobs, prompt_logprobs
from pllm.runtime.server.protocol.params import completion_params
from pllm.runtime.server.protocol.parse import Parsed
from pllm.runtime.server.protocol.prompts import prompts_of
from pllm.runtime.server.protocol.requests import CompletionRequest
from pllm.runtime.server.usage import usage_of

__all__ = ["CompletionAnswer"]


class CompletionAnswer:
    """One text completion: n answers to each of its prompts, after the prompt itself where ``echo`` asks for it."""

    last_words = b"data: [DONE]\n\n"

    def __init__(self, request: CompletionRequest, model: ServedModel) -> None:
        self._model = model
        self._name = model.name_for(request.model)
        self._params = completion_params(request, model.intake.generation, model.info.max_model_len)
        if request.echo and request.logprobs is not None:
            wanted = max(request.logprobs, request.prompt_logprobs or 0)
            self._params = msgspec.structs.replace(self._params, prompt_logprobs=wanted)
        self._form: RequestedForm | None = None
        self._num_prompts = len(prompts_of(request))
        self._add_special_tokens = request.add_special_tokens is not False
        self._show_prompt_logprobs = request.prompt_logprobs is not None
        self._id = new_id("cmpl")
        self._created = int(time.time())
        self._echo = bool(request.echo)
        self._only_prompt = request.max_tokens == 0  # one token was made all the same, and is not shown
        options = request.stream_options
        self._usage_at_end = options is not None and bool(options.include_usage)
        self._usage_always = options is not None and bool(options.continuous_usage_stats)
        self._shown: dict[int, int] = {}  # characters that each answer of a stream has had

    @property
    def num_prompts(self) -> int:
        """Known before any is tokenised."""
        return self._num_prompts

    @property
    def form_field(self) -> str:
        """The request's field that asks for a form."""
        return "structured_outputs" if self._form is None else self._form.field

    def prepare(self, parsed: Parsed[CompletionRequest]) -> list[RequestText]:
        """Each prompt as token ids; with ``echo`` the engine is asked for the prompt's log-probabilities too."""
        intake, request = self._model.intake, parsed.request
        self._form = requested_form(request, self._model.forms)
        if self._form is not None:
            self._params = msgspec.structs.replace(self._params, structured_outputs=self._form.params)
        return [
            intake.request(
                f"{self._id}-{i}",
                self._tokenized(prompt),
                self._params,
                priority=request.priority or 0,
                cache_salt=request.cache_salt or "",
            )
            for i, prompt in enumerate(prompts_of(request))
        ]

    def whole(self, texts: list[RequestText]) -> Completion:
        """All answers to all prompts."""
        choices: list[CompletionChoice] = []
        for text in texts:
            output = text.output()
            choices += [self._choice(text, output, answer, len(choices) + i) for i, answer in enumerate(output.outputs)]
        return self._completion(choices, texts, with_usage=True)

    def opening(self, texts: list[RequestText]) -> Iterable[Completion]:  # noqa: ARG002  (as for other answers)
        """Nothing: an answer's first chunk brings its prompt, where ``echo`` asks for it."""
        return ()

    def chunk(self, texts: list[RequestText], number: int, delta: TextDelta) -> Iterable[Completion]:
        """The new text of one answer; nothing while its tokens make no text yet and nobody counts them."""
        if self._echo and number not in self._shown:
            # Not before: a prompt's log-probabilities come with its first token, which others may be ahead of.
            text = texts[number // self._params.n]
            prompt = self._prompt_text(text)
            self._shown[number] = len(prompt)
            choice = CompletionChoice(number, prompt, self._echoed_logprobs(text))
            yield self._completion([choice], texts, self._usage_always)
        shown = delta.text or delta.finish_reason is not None or delta.logprobs is not None
        if not shown and not self._usage_always:
            return
        choice = CompletionChoice(number, "", None, delta.finish_reason, delta.stop_reason)  # type: ignore[arg-type]
        if not self._only_prompt:
            offset = self._shown.get(number, 0)
            self._shown[number] = offset + len(delta.text)
            choice.text = delta.text
            choice.logprobs = self._logprobs(delta.token_ids, delta.logprobs, offset)
        yield self._completion([choice], texts, self._usage_always)

    def closing(self, texts: list[RequestText]) -> Iterable[Completion]:
        """The usage, if it was asked for, in a chunk without choices."""
        if self._usage_at_end:
            yield self._completion([], texts, with_usage=True)

    def failed(self, error: Exception) -> Iterable[ErrorAnswer]:
        """The error, in place of what is missing."""
        yield error_answer(error)[1]

    def _tokenized(self, prompt: str | list[int]) -> Prompt:
        intake = self._model.intake
        if isinstance(prompt, str):
            self._model.check_size(len(prompt), "prompt")
        if isinstance(prompt, str) and not self._add_special_tokens:
            token_ids = intake.tokenizer.encode(prompt, add_special_tokens=False)
            return intake.prompt({"prompt": prompt, "prompt_token_ids": token_ids})
        return intake.prompt(prompt)

    def _completion(self, choices: list[CompletionChoice], texts: list[RequestText], with_usage: bool) -> Completion:
        completion = Completion(id=self._id, created=self._created, model=self._name, choices=choices)
        if with_usage:
            hidden = sum(text.num_output_tokens for text in texts) if self._only_prompt else 0
            completion.usage = usage_of(texts, hidden=hidden)
        elif self._usage_at_end:
            completion.usage = None
        return completion

    def _choice(
        self, text: RequestText, output: RequestOutput, answer: CompletionOutput, number: int
    ) -> CompletionChoice:
        token_ids: Sequence[int] = [] if self._only_prompt else answer.token_ids
        positions: Sequence[TokenLogprobDict | None] | None = [] if self._only_prompt else answer.logprobs
        shown = "" if self._only_prompt else answer.text
        if self._echo:
            shown = self._prompt_text(text) + shown
            if self._params.logprobs is not None:
                token_ids = [*text.request.prompt_token_ids, *token_ids]
                positions = [*(output.prompt_logprobs or ()), *(positions or ())]
        return CompletionChoice(
            number,
            shown,
            self._logprobs(token_ids, positions, 0),
            answer.finish_reason,  # type: ignore[arg-type]  # the engine's words are OpenAI's
            answer.stop_reason,
            prompt_logprobs(output.prompt_logprobs) if self._show_prompt_logprobs else None,
        )

    def _prompt_text(self, text: RequestText) -> str:
        if text.prompt is not None:
            return text.prompt
        return self._model.intake.tokenizer.decode(text.request.prompt_token_ids)

    def _echoed_logprobs(self, text: RequestText) -> CompletionLogprobs | None:
        return self._logprobs(text.request.prompt_token_ids, text.prompt_logprobs, 0)

    def _logprobs(
        self, token_ids: Sequence[int], positions: Sequence[TokenLogprobDict | None] | None, offset: int
    ) -> CompletionLogprobs | None:
        count = self._params.logprobs
        if count is None:
            return None
        return completion_logprobs(self._model.intake.tokenizer, token_ids, positions or [], count, offset)

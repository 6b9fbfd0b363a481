"""The library: ``LLM(model).generate(prompts, SamplingParams(...))``. The names and meanings are vLLM's."""

from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from itertools import count
from typing import Any, cast

import msgspec

from pllm.runtime.errors import QueueFullError, RequestError
from pllm.runtime.generation_progress import GenerationProgress, NoProgress
from pllm.runtime.intake import Prompt
from pllm.runtime.model_options import ModelOptions, open_model
from pllm.runtime.outputs import RequestOutput
from pllm.runtime.request_text import RequestText, TextDelta
from pllm.runtime.sampling_params import SamplingParams
from pllm.runtime.step import SchedulerStats
from pllm.runtime.text_engine import TextEngine
from pllm.runtime.tokenizer import Tokenizer

__all__ = ["LLM", "Conversation", "PromptInput"]

PromptInput = str | Sequence[int] | Mapping[str, Any]
"""Text, token ids, ``{"prompt": text}`` or ``{"prompt_token_ids": ids}``."""

Conversation = Sequence[Mapping[str, Any]]
"""Messages with a role and content."""


class LLM:
    """A model in this process.

    ``model`` is an artifact directory. A recipe, a checkpoint directory or a Hub id works too: it is built once, into
    the user's cache, with the build's progress shown, and opened from there afterwards. The keywords are explained in
    :class:`pllm.runtime.model_options.ModelOptions`; an unknown one is a TypeError that names the nearest.
    """

    def __init__(
        self,
        model: str,
        *,
        tokenizer: str | None = None,
        dtype: str = "auto",
        quantization: str | None = None,
        seed: int | None = 0,
        gpu_memory_utilization: float = 0.92,
        max_model_len: int | None = None,
        max_num_seqs: int | None = None,
        tensor_parallel_size: int = 1,
        revision: str | None = None,
        chat_template: str | None = None,
        **more: Any,
    ) -> None:
        given = {
            "tokenizer": tokenizer,
            "dtype": dtype,
            "quantization": quantization,
            "seed": seed,
            "gpu_memory_utilization": gpu_memory_utilization,
            "max_model_len": max_model_len,
            "max_num_seqs": max_num_seqs,
            "tensor_parallel_size": tensor_parallel_size,
            "revision": revision,
            "chat_template": chat_template,
        }
        self._options = ModelOptions.of("LLM", model, given | more)
        self._core, self._intake = open_model(self._options)
        self._engine = TextEngine(self._core.engine)
        self._request_numbers = count()
        self._unread: dict[str, deque[TextDelta]] = {}  # of each stream, what others' steps brought it

    def generate(
        self,
        prompts: PromptInput | Sequence[PromptInput],
        sampling_params: SamplingParams | Sequence[SamplingParams] | None = None,
        *,
        use_tqdm: bool = True,
        priority: Sequence[int] | None = None,
    ) -> list[RequestOutput]:
        """Continue one prompt or several; the results are in the prompts' order.

        ``sampling_params``: one for all or one a prompt; None takes the model's recommended ones. ``priority``: one a
        prompt, lower runs first. ``use_tqdm`` shows a progress bar. All prompts are checked before anything runs:
        raises RequestError for one that cannot be served, ContextLengthExceededError for one that is too long.
        """
        inputs = [self._intake.prompt(given) for given in _each_prompt(prompts)]
        return self._run(inputs, sampling_params, use_tqdm, priority)

    def chat(
        self,
        messages: Conversation | Sequence[Conversation],
        sampling_params: SamplingParams | Sequence[SamplingParams] | None = None,
        use_tqdm: bool = True,
        *,
        chat_template: str | None = None,
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
        tools: Sequence[Mapping[str, Any]] | None = None,
        chat_template_kwargs: Mapping[str, Any] | None = None,
    ) -> list[RequestOutput]:
        """Answer one conversation or several, each written out by the model's chat template.

        ``chat_template`` is one of the model's templates by name, a file, or a template as text.
        ``chat_template_kwargs`` are variables of the template's own. Raises as :meth:`generate`.
        """
        conversations = [messages] if not messages or isinstance(messages[0], Mapping) else messages
        template = None if chat_template is None else self._intake.tokenizer.chosen_template(chat_template)
        prompts = [
            self._intake.chat_prompt(
                conversation,  # type: ignore[arg-type]  # told apart by its first element
                tools=tools,
                chat_template=template,
                add_generation_prompt=add_generation_prompt,
                continue_final_message=continue_final_message,
                **(chat_template_kwargs or {}),
            )
            for conversation in conversations
        ]
        return self._run(prompts, sampling_params, use_tqdm, None)

    def stream(
        self, prompt: PromptInput | Prompt, sampling_params: SamplingParams | None = None
    ) -> Iterator[TextDelta]:
        """The answer to one prompt as it comes. Leaving the loop early ends the request."""
        ready = prompt if isinstance(prompt, Prompt) else self._intake.prompt(prompt)
        text = self._text(ready, sampling_params or self.get_default_sampling_params(), priority=0)
        return self._stream(text)

    def chat_prompt(self, messages: Conversation, **arguments: Any) -> Prompt:
        """The prompt of a conversation, for :meth:`stream`; the arguments are `Intake.chat_prompt`'s."""
        return self._intake.chat_prompt(messages, **arguments)

    def get_tokenizer(self) -> Tokenizer:
        """The model's tokenizer."""
        return self._intake.tokenizer

    def get_default_sampling_params(self) -> SamplingParams:
        """What the model's author recommends (generation_config.json), with neutral values for the rest."""
        return self._intake.generation.sampling_params()

    def chat_sampling_params(self, **given: Any) -> SamplingParams:
        """The recommended ones for an answer in a conversation, which may fill the context, with ``given`` over
        them."""
        return self._intake.generation.sampling_params(**given, fill_context=True)

    def get_metrics(self) -> SchedulerStats:
        """The engine's gauges at this moment and its counters since the start."""
        return self._engine.engine.stats()

    def reset_prefix_cache(self) -> bool:
        """Forget the cached prefixes; True, as in vLLM, when it is done."""
        self._engine.engine.reset_prefix_cache()
        return True

    def close(self) -> None:
        """Give back the model's memory; the object cannot be used afterwards."""
        self._core.close()

    def __enter__(self) -> "LLM":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _text(self, prompt: Prompt, params: SamplingParams, *, priority: int) -> RequestText:
        """The checked request for one prompt. Raises RequestError."""
        number = next(self._request_numbers)
        if params.seed is None and self._options.seed is not None:
            params = msgspec.structs.replace(params, seed=derived_seed(self._options.seed, number))
        text = self._intake.request(str(number), prompt, params, priority=priority)
        self._engine.check(text)
        return text

    def _run(
        self,
        prompts: Sequence[Prompt],
        sampling_params: SamplingParams | Sequence[SamplingParams] | None,
        use_tqdm: bool,
        priority: Sequence[int] | None,
    ) -> list[RequestOutput]:
        if sampling_params is None:
            sampling_params = self.get_default_sampling_params()
        each = [sampling_params] * len(prompts) if isinstance(sampling_params, SamplingParams) else sampling_params
        priorities = [0] * len(prompts) if priority is None else priority
        for name, values in (("sampling_params", each), ("priority", priorities)):
            if len(values) != len(prompts):
                raise RequestError(
                    f"{len(values)} {name} for {len(prompts)} prompts: give one, or one a prompt.", param=name
                )
        texts = [
            self._text(prompt, params, priority=rank)
            for prompt, params, rank in zip(prompts, each, priorities, strict=True)
        ]
        with GenerationProgress(len(texts)) if use_tqdm and texts else NoProgress() as progress:
            try:
                self._drive(texts, progress)
            finally:  # after an error or Ctrl-C nothing of this call may go on
                for text in texts:
                    self._engine.abort(text.request.request_id)
        return [text.output() for text in texts]

    def _drive(self, texts: Sequence[RequestText], progress: GenerationProgress | NoProgress) -> None:
        waiting = deque(texts)
        unfinished = {text.request.request_id for text in texts}
        while unfinished:
            while waiting:
                try:
                    self._engine.submit(waiting[0])
                except QueueFullError:
                    break
                waiting.popleft()
            for text, change in self._step():
                if change.request_id in unfinished:
                    progress.advance(text, change)
                    if text.finished:
                        unfinished.remove(change.request_id)

    def _stream(self, text: RequestText) -> Iterator[TextDelta]:
        self._engine.submit(text)
        unread = self._unread[text.request.request_id] = deque()
        try:
            while unread or not text.finished:
                if not unread:
                    self._step()
                while unread:
                    yield unread.popleft()
        finally:
            del self._unread[text.request.request_id]
            self._engine.abort(text.request.request_id)

    def _step(self) -> list[tuple[RequestText, TextDelta]]:
        """A step of the engine for whoever asked, and for the streams that are open beside it."""
        news = self._engine.step()
        for _, change in news:
            if change.request_id in self._unread:
                self._unread[change.request_id].append(change)
        return news


def derived_seed(seed: int, number: int) -> int:
    """The seed of the ``number``-th request: well mixed, so that neighbours draw nothing alike (SplitMix64, Steele
    2014)."""
    mixed = (seed * 0x9E3779B97F4A7C15 + number + 1) * 0x9E3779B97F4A7C15 % 2**64
    mixed = (mixed ^ mixed >> 30) * 0xBF58476D1CE4E5B9 % 2**64
    mixed = (mixed ^ mixed >> 27) * 0x94D049BB133111EB % 2**64
    return (mixed ^ mixed >> 31) >> 1


def _each_prompt(prompts: PromptInput | Sequence[PromptInput]) -> Sequence[PromptInput]:
    """One prompt (text, a dictionary, a list of token ids) as a list of one."""
    if isinstance(prompts, str | Mapping) or not isinstance(prompts, Sequence):
        return [prompts]
    is_one = len(prompts) > 0 and isinstance(prompts[0], int)
    return cast("Sequence[PromptInput]", [prompts] if is_one else prompts)

"""The library for asyncio: ``async for output in AsyncLLM(model).generate(prompt, params)``."""

import asyncio
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from dataclasses import dataclass
from queue import SimpleQueue
from typing import Any
from uuid import uuid4

from pllm.runtime.errors import EngineDeadError, PllmError
from pllm.runtime.intake import Intake, Prompt
from pllm.runtime.llm import PromptInput
from pllm.runtime.model_options import ModelOptions, open_model
from pllm.runtime.outputs import RequestOutput
from pllm.runtime.request_text import RequestText
from pllm.runtime.sampling_params import SamplingParams
from pllm.runtime.step import TokenDelta

__all__ = ["AsyncLLM"]


class AsyncLLM:
    """A model in this process whose engine steps in a thread of its own; requests may come at any time and run
    together.

    The keywords are those of :class:`pllm.runtime.llm.LLM`.
    """

    def __init__(self, model: str, **options: Any) -> None:
        self._core, self._intake = open_model(ModelOptions.of(type(self).__name__, model, options))
        self._commands: SimpleQueue[_Submit | _Abort | None] = SimpleQueue()
        self._streams: dict[str, _Stream] = {}  # the engine thread's own
        self._dead: PllmError | None = None
        self._thread = threading.Thread(target=self._run, name="pllm-engine", daemon=True)
        self._thread.start()

    @property
    def intake(self) -> Intake:
        """Prompts, the tokenizer and the model's recommended sampling."""
        return self._intake

    async def generate(
        self,
        prompt: PromptInput | Prompt,
        sampling_params: SamplingParams | None = None,
        request_id: str | None = None,
        *,
        priority: int = 0,
    ) -> AsyncIterator[RequestOutput]:
        """The answers so far, again and again until they are complete (``output.finished``).

        What comes while the caller is busy is in the next output. Leaving the loop, or cancelling it, ends the request.
        Raises RequestError, QueueFullError, and EngineDeadError when the engine fails.
        """
        ready = prompt if isinstance(prompt, Prompt) else self._intake.prompt(prompt)
        params = sampling_params or self._intake.generation.sampling_params()
        text = self._intake.request(request_id or uuid4().hex, ready, params, priority=priority)
        if text.request.params.structured_outputs is not None:
            await asyncio.to_thread(self._core.engine.check, text.request)
        stream = _Stream(text, asyncio.get_running_loop(), self._commands.put)
        self._commands.put(_Submit(stream))
        if self._dead is not None:
            raise self._dead
        try:
            while not text.finished:
                await stream.news()
                yield text.output()
        finally:
            self._commands.put(_Abort(text.request.request_id))

    def abort(self, request_id: str) -> None:
        """End a request from elsewhere: its last output says finish_reason "abort"."""
        self._commands.put(_Abort(request_id))

    def shutdown(self) -> None:
        """Stop the engine and give back the model's memory; what still runs ends with EngineDeadError."""
        self._commands.put(None)
        self._thread.join()
        self._core.close()

    def _run(self) -> None:
        """The engine's thread: commands in, a step, its tokens out to the event loops that wait for them."""
        engine = self._core.engine
        try:
            while True:
                while not engine.has_unfinished or not self._commands.empty():
                    command = self._commands.get()
                    if command is None:
                        return self._die(EngineDeadError("The engine was shut down."))
                    self._obey(command)
                for delta in engine.step():
                    stream = self._streams.get(delta.request_id)
                    if stream is not None:
                        stream.send(delta)
        except Exception as error:  # whatever it was, those who wait must hear of it
            self._die(EngineDeadError(f"The engine failed: {type(error).__name__}: {error}"))

    def _obey(self, command: "_Submit | _Abort") -> None:
        engine = self._core.engine
        if isinstance(command, _Submit):
            request_id = command.stream.text.request.request_id
            try:
                engine.submit(command.stream.text.request)
            except PllmError as error:
                command.stream.send(error)
            else:
                self._streams[request_id] = command.stream
        else:
            engine.abort(command.request_id, command.index)
            if command.index is None and (stream := self._streams.pop(command.request_id, None)) is not None:
                for index in range(stream.text.request.params.n):
                    stream.send(TokenDelta(command.request_id, index, [], finish_reason="abort"))

    def _die(self, error: EngineDeadError) -> None:
        """Tell everybody, those too whose request is still on its way: whoever sends one later sees ``_dead``."""
        self._dead = error
        while not self._commands.empty():
            command = self._commands.get()
            if isinstance(command, _Submit):
                command.stream.send(error)
        for stream in self._streams.values():
            stream.send(error)
        self._streams.clear()


class _Stream:
    """One request's text, which grows in its caller's event loop; ``send`` is for the engine's thread."""

    def __init__(self, text: RequestText, loop: asyncio.AbstractEventLoop, tell: "Callable[[_Abort], None]") -> None:
        self.text = text
        self._loop = loop
        self._tell = tell
        self._news = asyncio.Event()
        self._error: PllmError | None = None

    def send(self, what: TokenDelta | PllmError) -> None:
        """Hand over a delta, or what ended the request."""
        with suppress(RuntimeError):  # the event loop has been closed: nobody waits any more
            self._loop.call_soon_threadsafe(self._take, what)

    async def news(self) -> None:
        """Wait for something new. Raises what ended the request."""
        await self._news.wait()
        self._news.clear()
        if self._error is not None:
            raise self._error

    def _take(self, what: TokenDelta | PllmError) -> None:
        if isinstance(what, PllmError):
            self._error = what
        else:
            change = self.text.feed(what)
            if change is not None and change.ended_by_text:
                self._tell(_Abort(change.request_id, change.index))
        self._news.set()


@dataclass(frozen=True, slots=True)
class _Submit:
    stream: _Stream


@dataclass(frozen=True, slots=True)
class _Abort:
    """End a request, or one of its answers."""

    request_id: str
    index: int | None = None

"""What all routes share: the engine, the model, the counts, and whether requests are taken at all."""

import asyncio
import logging
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import ParamSpec, TypeVar

from pllm.runtime.engine_client import EngineClient
from pllm.runtime.errors import EngineDeadError, RequestError
from pllm.runtime.messages import EngineInfo
from pllm.runtime.metrics import ServerMetrics
from pllm.runtime.sequence import Request
from pllm.runtime.server.admission import Admission
from pllm.runtime.server.body import BodyReader
from pllm.runtime.server.grammar_check import GrammarCheck
from pllm.runtime.server.model import ServedModel, TextSide
from pllm.runtime.server.settings import ServerSettings
from pllm.runtime.shipped_forms import shipped_forms

__all__ = ["ReadyService", "Service"]

P = ParamSpec("P")
T = TypeVar("T")

_LOG = logging.getLogger("pllm.server")
_MAX_REPORTED = 256  # unknown fields that the log names, once each


class ReadyService:
    """What there is once an engine has been opened. Kept over the engine's restarts."""

    def __init__(self, model: ServedModel, admission: Admission, metrics: ServerMetrics) -> None:
        self.model = model
        self.admission = admission
        self.metrics = metrics


class Service:
    """One server. ``engine`` comes and goes; ``ready()`` says whether requests can be served now."""

    def __init__(self, settings: ServerSettings, artifact: Path) -> None:
        self.settings = settings
        self.engine = EngineClient(self._engine_ready)
        self.bodies = BodyReader(settings.limits)
        self.draining = False
        self._artifact = artifact
        self._created = int(time.time())
        self._text: TextSide | None = None
        self._ready: ReadyService | None = None
        self._threads = ThreadPoolExecutor(2, thread_name_prefix="pllm-text")
        self._reported: set[str] = set()
        self._grammars = GrammarCheck(artifact / "tokenizer" / "tokenizer.json")
        self.opened = asyncio.Event()

    async def open_text(self) -> None:
        """Reads the tokenizer and its templates, in a thread. Raises ArtifactError."""
        self._text = await asyncio.get_running_loop().run_in_executor(
            self._threads, TextSide, self._artifact, self.settings
        )
        if self.engine.info is not None:
            self._engine_ready(self.engine.info)

    @property
    def is_ready(self) -> bool:
        """Whether a request that came now would be taken."""
        return self._ready is not None and self.engine.ready and not self.draining

    def ready(self) -> ReadyService:
        """What serves requests. Raises EngineDeadError (503) with what a client should know."""
        if self.draining:
            raise EngineDeadError("The server is shutting down and takes no new requests.")
        if self._ready is None:
            raise EngineDeadError("The server is starting: the model is being opened. Try again in a few seconds.")
        if not self.engine.ready:
            raise EngineDeadError("The engine has stopped and is being started again. Try again in a few seconds.")
        return self._ready

    @property
    def admission(self) -> Admission | None:
        """Who may come in; None before the engine was first opened."""
        return None if self._ready is None else self._ready.admission

    def metrics(self) -> ServerMetrics | None:
        """The counts, also while the engine is away; None before it was first opened."""
        return None if self._ready is None else self._ready.metrics

    async def offload(self, size: int, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Runs ``work`` here if the request is small, else in a thread, so that other connections are not held up.

        Raises what it raises, and RequestError for what is nested too deeply for it.
        """
        try:
            if size < self.settings.limits.offload_bytes:
                return work(*args, **kwargs)
            return await asyncio.get_running_loop().run_in_executor(self._threads, lambda: work(*args, **kwargs))
        except RecursionError:
            raise RequestError("The request is nested too deeply.", code="invalid_value") from None

    async def check_form(self, request: Request, field: str) -> None:
        """Returns once it is known that the form of the request's answers can be kept to, if it asks for one.

        Raises RequestError, naming ``field``, where it cannot; QueueFullError where too many are being tried.
        """
        form = request.params.structured_outputs
        if form is not None:
            vocab_size = self.ready().model.info.vocab_size
            await self._grammars.check(form, vocab_size=vocab_size, eos_token_ids=request.eos_token_ids, param=field)

    def report_unknown(self, name: str, nearest: str | None) -> None:
        """Logs a field that nobody knows, once."""
        if name not in self._reported and len(self._reported) < _MAX_REPORTED:
            self._reported.add(name)
            hint = "" if nearest is None else f" (the nearest known field is {nearest!r})"
            _LOG.warning("A request has the unknown field %r%s: ignored.", name[:64], hint)

    def close(self) -> None:
        """Ends the threads, and the process that tries grammars out."""
        self._grammars.close()
        self._threads.shutdown(wait=False, cancel_futures=True)

    def _engine_ready(self, info: EngineInfo) -> None:
        if self._text is None:
            return  # open_text goes on from here
        for notice in info.notices:
            _LOG.info("%s", notice)
        forms = shipped_forms(self._artifact, info.grammars)
        self._grammars.trust(forms.values())
        model = ServedModel(
            self._text.intake(info),
            info,
            self._text.style,
            served_names=self.settings.served_names,
            created=self._created,
            forms=forms,
        )
        if self._ready is None:
            metrics = ServerMetrics(self.engine, prefix=self.settings.metrics_prefix, model_name=model.name)
            admission = Admission(capacity=info.max_num_seqs, max_queue=self.settings.max_queue)
            self.engine.on_step = metrics.step
            self._ready = ReadyService(model, admission, metrics)
        else:
            self._ready.model = model
            _LOG.info("The engine serves again, after %.2f s.", info.open_seconds)
        self.opened.set()

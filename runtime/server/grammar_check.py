"""Whether a grammar compiles, found out in a process of its own before the engine hears of it."""

import asyncio
import json
import os
import sys
from collections import OrderedDict
from collections.abc import Iterable
from pathlib import Path

import msgspec

from pllm.runtime.errors import EngineDeadError, QueueFullError, RequestError
from pllm.runtime.structured_outputs import StructuredOutputsParams

__all__ = ["GrammarCheck"]

_KEPT = 1024  # verdicts
_MAX_WAITING = 64


class GrammarCheck:
    """Asks `pllm.runtime.grammar_process`, which is started by the first question. Verdicts are kept.

    ``tokenizer``: the artifact's tokenizer.json. All of it on one event loop.
    """

    def __init__(self, tokenizer: Path) -> None:
        self._tokenizer = tokenizer
        self._verdicts: OrderedDict[StructuredOutputsParams, asyncio.Future[str | None]] = OrderedDict()
        self._trusted: frozenset[StructuredOutputsParams] = frozenset()
        self._asked: dict[int, asyncio.Future[str | None]] = {}
        self._num_asked = 0
        self._process: asyncio.subprocess.Process | None = None
        self._reader: asyncio.Task[None] | None = None
        self._starting = asyncio.Lock()
        self._asking: set[asyncio.Task[None]] = set()

    def trust(self, forms: Iterable[StructuredOutputsParams]) -> None:
        """Forms that need no trial: the build has compiled them."""
        self._trusted = frozenset(forms)

    async def check(
        self, form: StructuredOutputsParams, *, vocab_size: int, eos_token_ids: tuple[int, ...], param: str
    ) -> None:
        """Returns if the form can be kept to. Raises RequestError, naming ``param``, if it cannot; QueueFullError where
        too many wait for their verdicts."""
        if form in self._trusted:
            return
        verdict = self._verdicts.get(form)
        if verdict is None:
            if len(self._asked) >= _MAX_WAITING:
                raise QueueFullError(f"{len(self._asked)} grammars are being compiled: come back later.")
            verdict = self._verdicts[form] = asyncio.get_running_loop().create_future()
            verdict.add_done_callback(lambda done: self._keep(form, done))
            # In a task of its own: this client may go away, and others wait for the same verdict.
            asking = asyncio.ensure_future(self._ask(form, verdict, vocab_size, eos_token_ids))
            self._asking.add(asking)
            asking.add_done_callback(self._asking.discard)
        self._verdicts.move_to_end(form)
        error = await asyncio.shield(verdict)
        if error is not None:
            raise RequestError(error, param=param, code="invalid_grammar")

    def close(self) -> None:
        """Ends the process."""
        if self._reader is not None:
            self._reader.cancel()
        if self._process is not None and self._process.returncode is None:
            self._process.kill()

    async def _ask(
        self,
        form: StructuredOutputsParams,
        verdict: "asyncio.Future[str | None]",
        vocab_size: int,
        eos_token_ids: tuple[int, ...],
    ) -> None:
        number = self._num_asked
        self._num_asked += 1
        self._asked[number] = verdict
        try:
            async with self._starting:
                if self._process is None:
                    await self._start(vocab_size, eos_token_ids)
                assert self._process is not None and self._process.stdin is not None
                question = {"id": number, "form": msgspec.to_builtins(form)}
                self._process.stdin.write(json.dumps(question).encode() + b"\n")
        except OSError as error:
            del self._asked[number]
            verdict.set_exception(EngineDeadError(f"Grammars cannot be compiled at this moment: {error.strerror}."))

    async def _start(self, vocab_size: int, eos_token_ids: tuple[int, ...]) -> None:
        self._process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "pllm.runtime.grammar_process",
            str(self._tokenizer),
            str(vocab_size),
            json.dumps(eos_token_ids),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            # No threads of the tokenizer's beside the one that forks; and the room that this process has to be found.
            env={**os.environ, "TOKENIZERS_PARALLELISM": "false", "RAYON_NUM_THREADS": "1"},
        )
        self._reader = asyncio.ensure_future(self._read(self._process))

    async def _read(self, process: asyncio.subprocess.Process) -> None:
        assert process.stdout is not None
        while line := await process.stdout.readline():
            answer = json.loads(line)
            verdict = self._asked.pop(answer["id"], None)
            if verdict is not None and not verdict.done():
                verdict.set_result(answer["error"])
        # It has died, and nobody knows of what: the next question starts another.
        self._process = None
        asked, self._asked = self._asked, {}
        for verdict in asked.values():
            if not verdict.done():
                verdict.set_exception(EngineDeadError("Grammars cannot be compiled at this moment. Try again."))
        await process.wait()

    def _keep(self, form: StructuredOutputsParams, verdict: "asyncio.Future[str | None]") -> None:
        """What is no verdict is not kept; of those that are, the last ones used."""
        if verdict.exception() is not None:
            self._verdicts.pop(form, None)
        while len(self._verdicts) > _KEPT:
            self._verdicts.popitem(last=False)

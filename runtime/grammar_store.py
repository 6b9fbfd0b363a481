"""The grammars of an engine: compiled in a thread beside its steps, and kept for the next requests."""

from collections import OrderedDict
from collections.abc import Iterable
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING

from pllm.runtime.step import Grammar
from pllm.runtime.structured_outputs import StructuredOutputsParams

if TYPE_CHECKING:
    from pllm.runtime.grammar import Vocabulary

__all__ = ["GrammarStore"]

_KEPT = 64


class GrammarStore:
    """Compiles one grammar at a time, without the GIL: steps go on meanwhile. The last ones used are kept.

    Nothing is loaded before the first is asked for. ``tokenizer``: the artifact's tokenizer.json; ``vocab_size``: rows
    of the model's embedding.
    """

    def __init__(self, tokenizer: Path, vocab_size: int, *, kept: int = _KEPT) -> None:
        self._tokenizer = tokenizer
        self._vocab_size = vocab_size
        self._max_kept = kept
        self._kept: OrderedDict[tuple[StructuredOutputsParams, tuple[int, ...]], Future[Grammar]] = OrderedDict()
        self._pinned: dict[tuple[StructuredOutputsParams, tuple[int, ...]], Future[Grammar]] = {}
        self._vocabularies: dict[tuple[int, ...], Vocabulary] = {}  # the thread's own
        self._lock = Lock()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="pllm-grammar")

    def keep(self, params: StructuredOutputsParams, eos_token_ids: tuple[int, ...]) -> None:
        """Compile a grammar ahead of the first request for it, and never drop it."""
        with self._lock:
            self._pinned[params, eos_token_ids] = self._thread.submit(self._compile, params, eos_token_ids)

    def prepare(self, params: StructuredOutputsParams, eos_token_ids: tuple[int, ...]) -> Future[Grammar]:
        """The grammar, as soon as it is compiled; or the RequestError that says why it cannot be."""
        key = (params, eos_token_ids)
        with self._lock:
            if key in self._pinned:
                return self._pinned[key]
            future = self._kept.get(key)
            if future is None:
                future = self._kept[key] = self._thread.submit(self._compile, params, eos_token_ids)
                if len(self._kept) > self._max_kept:
                    self._kept.popitem(last=False)
            self._kept.move_to_end(key)
        return future

    def wait(self, futures: Iterable[Future[Grammar]], seconds: float) -> None:
        """Return when one of them is done, or after ``seconds``."""
        wait(futures, seconds, FIRST_COMPLETED)

    def wait_kept(self) -> None:
        """Return when all that `keep` was given is compiled, or cannot be: for measurements."""
        with self._lock:
            pinned = tuple(self._pinned.values())
        wait(pinned)

    def close(self) -> None:
        """End the thread; what it has not begun is dropped."""
        self._thread.shutdown(wait=False, cancel_futures=True)

    def _compile(self, params: StructuredOutputsParams, eos_token_ids: tuple[int, ...]) -> Grammar:
        from pllm.runtime.grammar import Grammar, Vocabulary  # noqa: PLC0415  (requests without a form owe it nothing)

        if eos_token_ids not in self._vocabularies:
            self._vocabularies[eos_token_ids] = Vocabulary(self._tokenizer, self._vocab_size, eos_token_ids)
        return Grammar(params, self._vocabularies[eos_token_ids])

"""How many tokens of an answer are thoughts: what ``usage`` tells of them."""

from collections.abc import Sequence

from pllm.runtime.detokenizer import IncrementalDetokenizer
from pllm.runtime.message.pieces import split_at
from pllm.runtime.message.reasoning import THINK, THINK_END
from pllm.runtime.tokenizer import Tokenizer

__all__ = ["ThoughtTokens"]


class ThoughtTokens:
    """Counts an answer's tokens up to the one that completes ``</think>``, however they come.

    ``begun``: the prompt has opened the thoughts. Otherwise they are there only if the text begins with ``<think>``
    (as `ReasoningReader` has it).
    """

    def __init__(self, tokenizer: Tokenizer, *, begun: bool) -> None:
        self._detokenizer = IncrementalDetokenizer(tokenizer, skip_special_tokens=False)
        self._begun = begun
        self._thinks: bool | None = None  # None: not known yet
        self._over = False
        self._num_seen = 0
        self._held = ""

    @property
    def count(self) -> int:
        """Of the tokens so far."""
        thinks = self._begun if self._thinks is None else self._thinks
        return self._num_seen if thinks else 0

    def feed(self, token_ids: Sequence[int]) -> None:
        """The answer's next tokens."""
        for token_id in token_ids:
            if self._over:
                return
            self._num_seen += 1
            self._held += self._detokenizer.feed((token_id,))
            if self._thinks is None:
                self._look_for_beginning()
            if self._thinks:
                _, end, self._held = split_at(self._held, (THINK_END,))
                self._over = bool(end)

    def _look_for_beginning(self) -> None:
        beginning = self._held.lstrip()
        if beginning.startswith(THINK):
            self._thinks, self._held = True, beginning[len(THINK) :]
        elif not THINK.startswith(beginning):
            self._thinks = self._begun
            self._over = not self._begun

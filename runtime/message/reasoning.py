"""``<think>...</think>`` before the answer (Qwen3, DeepSeek-R1 and those made like them)."""

from pllm.runtime.message.pieces import Piece, PieceReader, Reasoning, split_at

__all__ = ["THINK", "THINK_END", "ReasoningReader"]

THINK, THINK_END = "<think>", "</think>"


class ReasoningReader:
    """Tells thoughts from the answer, which ``answer`` reads. Spaces and line ends around thoughts belong to neither.

    ``begun``: the prompt has opened the thoughts. Otherwise they are there only if the text begins with ``<think>``.
    """

    def __init__(self, answer: PieceReader, *, begun: bool) -> None:
        self._answer = answer
        self._thinks: bool | None = None  # None: not known yet
        self._begun = begun
        self._thought = False  # something has been shown
        self._strips = False  # thoughts are over, and the answer has not begun
        self._held = ""

    def feed(self, text: str) -> list[Piece]:
        """The pieces that this settles."""
        self._held += text
        if self._thinks is None:
            beginning = self._held.lstrip()
            if beginning.startswith(THINK):
                self._thinks, self._held = True, beginning[len(THINK) :]
            elif THINK.startswith(beginning):
                return []
            else:
                self._thinks = self._begun
        return self._think() if self._thinks else self._say()

    def finish(self) -> list[Piece]:
        """What was held back."""
        held, self._held = self._held, ""
        pieces: list[Piece] = []
        if self._thinks or (self._thinks is None and self._begun):
            thought = held.rstrip() if self._thought else held.strip()
            pieces = [Reasoning(thought)] if thought else []
        elif held and not self._strips:
            pieces = self._answer.feed(held)
        return pieces + self._answer.finish()

    def _think(self) -> list[Piece]:
        before, end, rest = split_at(self._held, (THINK_END,))
        if not self._thought:
            before = before.lstrip()
        shown = before.rstrip()
        self._thought = self._thought or bool(shown)
        pieces: list[Piece] = [Reasoning(shown)] if shown else []
        if not end:
            self._held = before[len(shown) :] + rest
            return pieces
        self._thinks, self._strips, self._held = False, True, rest
        return pieces + self._say()

    def _say(self) -> list[Piece]:
        text, self._held = self._held, ""
        if self._strips:
            text = text.lstrip()
            self._strips = not text
        return self._answer.feed(text) if text else []

"""Token ids to text as they come: the decoder's stream, and the stop strings that end it."""

from collections.abc import Sequence

from pllm.runtime.sampling_params import SamplingParams
from pllm.runtime.stop_strings import StopStrings
from pllm.runtime.tokenizer import Tokenizer

__all__ = ["IncrementalDetokenizer", "SequenceText"]


class IncrementalDetokenizer:
    """The text of one sequence of token ids; all of ``feed`` and ``flush`` joined is ``tokenizer.decode`` of the whole.

    No half characters: bytes wait for the rest of their character until ``flush`` gives them up as U+FFFD.
    ``continues``: text stands before the first id, so a space that the tokenizer writes between two words is kept.
    Without ``spaces_between_special_tokens`` an added token right after another one is written bare.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        *,
        skip_special_tokens: bool = True,
        spaces_between_special_tokens: bool = True,
        continues: bool = False,
    ) -> None:
        self._token = tokenizer.id_to_token
        self._skipped = tokenizer.special_ids if skip_special_tokens else frozenset()
        self._bare = frozenset() if spaces_between_special_tokens else tokenizer.added_ids
        self._after_bare = False
        self._stream = tokenizer.decoder.start(continues=continues)

    def feed(self, token_ids: Sequence[int]) -> str:
        """The text that these ids settle, often empty. Ids without a token (a padded vocabulary) have no text."""
        texts = []
        for token_id in token_ids:
            if token_id in self._skipped or (token := self._token(token_id)) is None:
                continue
            text = self._stream.feed(token)
            if self._bare:
                is_bare = token_id in self._bare
                texts.append(token if is_bare and self._after_bare else text)
                self._after_bare = is_bare
            else:
                texts.append(text)
        return "".join(texts)

    def flush(self) -> str:
        """The rest: the sequence is over."""
        return self._stream.flush()


class SequenceText:
    """The text of one answer: detokenised, and cut at the first stop string.

    The text is what ``feed`` returns, joined; ``num_tokens`` counts the tokens it took. What may be the beginning of a
    stop string is held back until it is known to be none. A stop string counts only when it is completed by a token
    after the first ``min_tokens``.
    """

    def __init__(self, tokenizer: Tokenizer, params: SamplingParams, *, continues: bool = False) -> None:
        self._detokenizer = (
            IncrementalDetokenizer(
                tokenizer,
                skip_special_tokens=params.skip_special_tokens,
                spaces_between_special_tokens=params.spaces_between_special_tokens,
                continues=continues,
            )
            if params.detokenize
            else None
        )
        self._stops = StopStrings(params.stop or ())
        self._include_stop = params.include_stop_str_in_output
        self._min_tokens = params.min_tokens
        self.num_tokens = 0
        self._held = ""
        self.stopped_by: str | None = None

    def feed(self, token_ids: Sequence[int], *, final: bool = False, ends_with_stop_token: bool = False) -> str:
        """The text that can be shown now. ``final``: nothing follows. A stop string met is then in ``stopped_by``.

        ``ends_with_stop_token``: the last id ended the sequence; its text is shown only if stops are to be included.
        """
        if self._detokenizer is None:
            self.num_tokens += len(token_ids)
            return ""
        shown = ""
        last = len(token_ids) - 1
        for i, token_id in enumerate(token_ids):
            self.num_tokens += 1
            if i == last and ends_with_stop_token and not self._include_stop:
                break
            shown += self._take(self._detokenizer.feed((token_id,)))
            if self.stopped_by is not None:
                return shown
        if final:
            shown += self._take(self._detokenizer.flush())
            if self.stopped_by is None:
                shown, self._held = shown + self._held, ""
        return shown

    def _take(self, piece: str) -> str:
        """Add a piece of text; what of it (and of what was held back) is settled."""
        if not self._stops:
            return piece
        match = self._stops.feed(piece, armed=self.num_tokens > self._min_tokens)
        if match is not None:
            self.stopped_by = match.string
            text = self._held + piece[: match.end]
            return text if self._include_stop else text[: len(text) - len(match.string)]
        text = self._held + piece
        settled = len(text) - (0 if self._include_stop else self._stops.held_back)
        self._held = text[settled:]
        return text[:settled]

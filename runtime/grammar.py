"""Grammars over tokens: which tokens may follow, so that an answer keeps the form that was asked for.

The automata are llguidance's (Earley's parser over derivatives of regular expressions, computed as they are needed):
https://github.com/guidance-ai/llguidance. Nothing else imports it.
"""

import json
import re
from collections.abc import Sequence
from pathlib import Path

from llguidance import LLMatcher, LLParserLimits, LLTokenizer
from llguidance.gbnf_to_lark import GbnfToLarkError, gbnf_to_lark

from pllm.runtime.errors import RequestError
from pllm.runtime.lark import json_form, lark_text, unanchored
from pllm.runtime.step import GRAMMAR_FAILED, GrammarFailedError
from pllm.runtime.structured_outputs import StructuredOutputsParams

__all__ = ["Grammar", "GrammarMatcher", "Vocabulary"]

_LONGEST_MESSAGE = 300
_GBNF_RULE = re.compile(r"^\s*[\w-]+\s*::=", re.MULTILINE)


def _limits() -> LLParserLimits:
    """What a grammar may cost. A lexer's state takes one to two kilobytes; a step's fuel is some 15 ms."""
    return LLParserLimits(max_lexer_states=25_000, max_grammar_size=200_000, verbose_errors=False)


class Vocabulary:
    """A model's tokens as grammars see them. Opening one of 32,000 tokens takes a quarter of a second.

    ``tokenizer``: a tokenizer.json whose text is bytes (byte-level BPE, or byte fallback). ``eos_token_ids``: what may
    be sampled where the form is complete. Raises RequestError where that is nothing or llguidance cannot read the file.
    """

    def __init__(self, tokenizer: Path, vocab_size: int, eos_token_ids: Sequence[int]) -> None:
        if not eos_token_ids:
            raise _refusal("This model has no end token, so no answer of a given form could end.")
        try:
            # By its path: with the file's text llguidance would hold the GIL, and with it a whole process, meanwhile.
            self.tokens = LLTokenizer(str(tokenizer), n_vocab=vocab_size, eos_token=list(eos_token_ids))
        except ValueError as error:
            raise _refusal(f"Structured outputs are not available with this model's tokenizer: {error}") from None


class Grammar:
    """A form, compiled; frozen."""

    def __init__(self, params: StructuredOutputsParams, vocabulary: Vocabulary) -> None:
        """Raises RequestError for what is no grammar, allows nothing, or is too large."""
        try:
            text = _grammar_text(params)
        except (ValueError, RecursionError, GbnfToLarkError) as error:
            raise _refusal(f"The grammar cannot be read: {_shortened(str(error))}") from None
        self._first = LLMatcher(vocabulary.tokens, text, log_level=0, limits=_limits())
        self._raise_error()
        # Asked for its first tokens now, not in a step: that is where an empty language and most explosions show.
        self._first.compute_bitmask()
        self._raise_error()

    def matcher(self) -> "GrammarMatcher":
        """A matcher at the beginning of the form."""
        return GrammarMatcher(self._first.deep_copy())

    def _raise_error(self) -> None:
        if self._first.is_error():
            reason = self._first.get_error().removesuffix("\n<non-verbose/>")
            if reason in ("NoExtension", "NoExtensionBias"):
                reason = "nothing matches it"
            raise _refusal(f"The grammar cannot be used: {_shortened(reason)}")


class GrammarMatcher:
    """Follows one sequence through a form. What it knows is a function of the sequence's output tokens."""

    def __init__(self, matcher: LLMatcher) -> None:
        self._matcher = matcher
        self._num_consumed = 0

    def allowed(self, output_token_ids: Sequence[int]) -> bytes:
        """The tokens that may follow ``output_token_ids``: a bit each, the lowest id in a byte's lowest bit.

        Where the form is complete and cannot go on these are the end tokens alone. Raises GrammarFailedError.
        """
        if len(output_token_ids) < self._num_consumed:
            self._matcher.reset()
            self._num_consumed = 0
        new = list(output_token_ids[self._num_consumed :])
        if new:
            self._matcher.consume_tokens(new)
            self._num_consumed += len(new)
        mask = self._matcher.compute_bitmask()
        if self._matcher.is_error():
            reason = self._matcher.get_error().removesuffix("\n<non-verbose/>")
            raise GrammarFailedError(f"{GRAMMAR_FAILED}: {_shortened(reason)}")
        return mask

    @property
    def is_complete(self) -> bool:
        """Nothing but the end may follow what was last asked about."""
        return self._matcher.is_stopped()


def _grammar_text(params: StructuredOutputsParams) -> str:
    """The form as llguidance reads it."""
    if params.json_object:
        return LLMatcher.grammar_from_json_schema(json_form({"type": "object"}))
    if params.json is not None:
        return LLMatcher.grammar_from_json_schema(json_form(json.loads(str(params.json))))
    if params.regex is not None:
        return LLMatcher.grammar_from_regex(unanchored(params.regex))
    if params.choice is not None:
        return LLMatcher.grammar_from_lark("start: " + " | ".join(map(lark_text, params.choice)))
    grammar = params.grammar or ""
    return LLMatcher.grammar_from_lark(gbnf_to_lark(grammar) if _GBNF_RULE.search(grammar) else grammar)


def _shortened(text: str) -> str:
    text = " ".join(text.split())
    return text if len(text) <= _LONGEST_MESSAGE else text[:_LONGEST_MESSAGE] + "..."


def _refusal(message: str) -> RequestError:
    return RequestError(message, param="structured_outputs", code="invalid_grammar")

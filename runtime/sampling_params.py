"""SamplingParams: how one request's tokens are chosen. Names, defaults and ranges are vLLM's."""

import math
import operator
from collections.abc import Iterable, Mapping, Sequence
from itertools import islice
from typing import TYPE_CHECKING, Any, SupportsIndex, TypeVar, cast

import msgspec

from pllm.runtime.errors import RequestError
from pllm.runtime.structured_outputs import StructuredOutputsParams

__all__ = ["MAX_LOGPROBS", "MAX_N", "SamplingParams"]

# What one request may ask for, checked before anything is copied or tokenised.
MAX_N = 128
MAX_LOGPROBS = 20
MAX_STOP_STRINGS = 64
MAX_STOP_LENGTH = 1_000
MAX_BAD_WORDS = 1_000
MAX_LOGIT_BIAS = 10_000
MAX_TOKEN_IDS = 1_000_000
MAX_TOKEN_ID = 2**31 - 1

GREEDY_BELOW = 1e-5  # a temperature this small divides logits into infinities: it means greedy, as in vLLM

FLAGS = (
    "ignore_eos",
    "detokenize",
    "skip_special_tokens",
    "spaces_between_special_tokens",
    "include_stop_str_in_output",
)

T = TypeVar("T")


class _NearestKeyword(msgspec.StructMeta):
    """Makes an unknown keyword an error that names the nearest known one."""

    if not TYPE_CHECKING:  # type checkers know the fields, and would only be told less

        def __call__(cls, **kwargs):  # noqa: N805  (a metaclass's self is a class)
            fields = cls.__struct_fields__
            for keyword in kwargs.keys() - set(fields):
                from difflib import get_close_matches  # noqa: PLC0415  (10 ms that a cold start does not owe)

                near = get_close_matches(keyword, fields, n=1, cutoff=0.0)[0]
                raise TypeError(f"{cls.__name__} has no parameter {keyword!r}. Did you mean {near!r}?")
            return super().__call__(**kwargs)


class SamplingParams(
    msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True, metaclass=_NearestKeyword
):
    """How tokens are sampled and when a sequence ends.

    A value out of its range raises `RequestError` with `param` set; an unknown keyword raises `TypeError`.
    Lists are taken and kept as tuples; a single `stop` string becomes a tuple of one.
    """

    n: int = 1  # sequences per prompt, 1..128
    temperature: float = 1.0  # [0, 2]; below 1e-5 the most likely token is taken
    top_p: float = 1.0  # (0, 1]; keep the fewest most likely tokens whose mass reaches this
    top_k: int = 0  # keep this many most likely tokens; 0 (or -1) keeps all
    min_p: float = 0.0  # [0, 1]; keep tokens at least this fraction as likely as the likeliest
    presence_penalty: float = 0.0  # [-2, 2]; subtracted once from each token already generated
    frequency_penalty: float = 0.0  # [-2, 2]; subtracted once per occurrence
    repetition_penalty: float = 1.0  # > 0; divides positive and multiplies negative logits of prompt and output tokens
    seed: int | None = None  # int64; None (or -1) draws a fresh one per request
    max_tokens: int | None = 16  # >= 1; None generates up to the model's context
    min_tokens: int = 0  # no end-of-sequence or stop token before this many
    ignore_eos: bool = False
    stop: Sequence[str] = ()
    stop_token_ids: Sequence[int] = ()
    bad_words: Sequence[str] = ()  # never generated
    allowed_token_ids: Sequence[int] | None = None  # nothing else is generated
    logit_bias: dict[int, float] | None = None  # token id -> added to its logit, clamped to [-100, 100]
    logprobs: int | None = None  # 0..20 most likely alternatives beside the sampled token
    prompt_logprobs: int | None = None  # the same for the prompt's own tokens
    detokenize: bool = True
    skip_special_tokens: bool = True
    spaces_between_special_tokens: bool = True
    include_stop_str_in_output: bool = False
    structured_outputs: StructuredOutputsParams | None = None  # the form that the text must have

    @property
    def greedy(self) -> bool:
        """The most likely token is taken and nothing is drawn."""
        return self.temperature < GREEDY_BELOW

    def __post_init__(self) -> None:
        def settle(name: str, value: object) -> None:
            msgspec.structs.force_setattr(self, name, value)

        settle("n", _integer("n", self.n, 1, MAX_N))
        settle("temperature", _number("temperature", self.temperature, 0.0, 2.0))
        settle("top_p", _number("top_p", self.top_p, 0.0, 1.0, above_low=True))
        settle("top_k", max(0, _integer("top_k", self.top_k, -1, MAX_TOKEN_ID)))
        settle("min_p", _number("min_p", self.min_p, 0.0, 1.0))
        settle("presence_penalty", _number("presence_penalty", self.presence_penalty, -2.0, 2.0))
        settle("frequency_penalty", _number("frequency_penalty", self.frequency_penalty, -2.0, 2.0))
        settle("repetition_penalty", _number("repetition_penalty", self.repetition_penalty, 0.0, 1e6, above_low=True))
        if self.seed is not None:
            seed = _integer("seed", self.seed, -(2**63), 2**63 - 1)
            settle("seed", None if seed == -1 else seed)
        if self.max_tokens is not None:
            settle("max_tokens", _integer("max_tokens", self.max_tokens, 1, MAX_TOKEN_ID))
        settle("min_tokens", _integer("min_tokens", self.min_tokens, 0, self.max_tokens or MAX_TOKEN_ID))
        for name in ("logprobs", "prompt_logprobs"):
            if (count := getattr(self, name)) is not None:
                settle(name, _integer(name, count, 0, MAX_LOGPROBS))
        for name in FLAGS:
            if not isinstance(getattr(self, name), bool):
                raise _refusal(name, getattr(self, name), "true or false")

        settle("stop", _strings("stop", self.stop, MAX_STOP_STRINGS))
        settle("bad_words", _strings("bad_words", self.bad_words, MAX_BAD_WORDS))
        settle("stop_token_ids", _token_ids("stop_token_ids", self.stop_token_ids))
        if self.allowed_token_ids is not None:
            settle("allowed_token_ids", _token_ids("allowed_token_ids", self.allowed_token_ids))
            if not self.allowed_token_ids:
                raise RequestError("allowed_token_ids is empty: no token could be generated", param="allowed_token_ids")
        if self.logit_bias is not None:
            settle("logit_bias", _logit_bias(self.logit_bias))
        if isinstance(self.structured_outputs, Mapping):
            settle("structured_outputs", _structured_outputs(self.structured_outputs))
        elif not isinstance(self.structured_outputs, StructuredOutputsParams | None):
            raise _refusal("structured_outputs", self.structured_outputs, "a StructuredOutputsParams")
        if self.stop and not self.detokenize:
            raise RequestError("stop strings are found in text: they need detokenize=True", param="stop")


def _refusal(name: str, value: object, wanted: str) -> RequestError:
    shown = repr(value)
    shown = shown if len(shown) <= 60 else shown[:60] + "..."
    return RequestError(f"{name} must be {wanted}, got {shown}", param=name)


def _integer(name: str, value: SupportsIndex, low: int, high: int) -> int:
    wanted = f"an integer of at least {low}" if high == MAX_TOKEN_ID else f"an integer from {low} to {high}"
    if isinstance(value, bool):
        raise _refusal(name, value, wanted)
    try:
        integer = operator.index(value)
    except TypeError:
        raise _refusal(name, value, wanted) from None
    if not low <= integer <= high:
        raise _refusal(name, integer, wanted)
    return integer


def _number(name: str, value: float, low: float, high: float, *, above_low: bool = False) -> float:
    wanted = f"a number above {low:g} and up to {high:g}" if above_low else f"a number from {low:g} to {high:g}"
    if isinstance(value, bool | str | bytes):
        raise _refusal(name, value, wanted)
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        raise _refusal(name, value, wanted) from None
    if not low <= number <= high or (above_low and number == low):  # NaN fails the first comparison
        raise _refusal(name, number, wanted)
    return number


def _items(name: str, value: Iterable[T] | None, limit: int) -> tuple[T, ...]:
    if value is None:
        return ()
    if isinstance(value, Mapping | bytes) or not isinstance(value, Iterable):
        raise _refusal(name, value, "a list")
    items = tuple(islice(value, limit + 1))
    if len(items) > limit:
        raise RequestError(f"{name} takes at most {limit} items", param=name)
    return items


def _strings(name: str, value: Iterable[str] | None, limit: int) -> tuple[str, ...]:
    strings = _items(name, (value,) if isinstance(value, str) else value, limit)
    for string in strings:
        if not isinstance(string, str) or not 0 < len(string) <= MAX_STOP_LENGTH:
            raise _refusal(name, string, f"strings of 1 to {MAX_STOP_LENGTH} characters")
    return strings


def _token_ids(name: str, value: Iterable[int] | None) -> tuple[int, ...]:
    if isinstance(value, str):
        raise _refusal(name, value, "a list of token ids")
    return tuple(_integer(name, token, 0, MAX_TOKEN_ID) for token in _items(name, value, MAX_TOKEN_IDS))


def _structured_outputs(fields: Mapping[str, Any]) -> StructuredOutputsParams:
    known = StructuredOutputsParams.__struct_fields__
    unknown = [name for name in fields if name not in known]
    if unknown:
        raise _refusal("structured_outputs", unknown[0], f"an object with one of {', '.join(known)}")
    return StructuredOutputsParams(**fields)


def _logit_bias(value: Mapping[int, float]) -> dict[int, float]:
    """JSON's keys are strings and OpenAI's clients send them so: a string of digits is a token id."""
    if not isinstance(value, Mapping):
        raise _refusal("logit_bias", value, "a mapping of token ids to numbers")
    if len(value) > MAX_LOGIT_BIAS:
        raise RequestError(f"logit_bias takes at most {MAX_LOGIT_BIAS} items", param="logit_bias")
    biases = {}
    for key, bias in cast(Mapping[int | str, float], value).items():
        token = int(key) if isinstance(key, str) and key.isascii() and key.isdigit() and len(key) <= 10 else key
        number = _number("logit_bias", bias, -math.inf, math.inf)
        biases[_integer("logit_bias", cast(int, token), 0, MAX_TOKEN_ID)] = min(100.0, max(-100.0, number))
    return biases

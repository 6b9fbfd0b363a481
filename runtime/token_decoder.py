"""Tokens to text, a token at a time: each decoder of a tokenizer.json as a streaming step that gives the same text.

`tokenizers` decodes whole sequences: a list of token strings passes through a chain of decoders, and what comes out is
joined. Each step here is one of those decoders with its memory made explicit, so that what it has settled comes out at
once and what it cannot settle yet stays in. So the work is constant per token, and the concatenation of everything that
comes out, flush included, is what the whole decode gives: also where the bytes are no valid UTF-8, where the usual
trick (decode a window, and wait while it ends in U+FFFD) waits for ever or decodes the same window again and again.
"""

import codecs
import json
import re
from collections.abc import Callable
from functools import cache
from typing import Any, Protocol

from tokenizers import Regex, Tokenizer, decoders

from pllm.runtime.errors import ArtifactError

__all__ = ["DecoderStream", "TokenDecoder", "clean_up"]

_REPLACEMENT = "\N{REPLACEMENT CHARACTER}"
_BYTE_TOKEN = re.compile(r"<0x(\+[0-9A-Fa-f]|[0-9A-Fa-f]{2})>")  # the sign is what Rust's from_str_radix takes too


@cache
def _byte_of_character() -> dict[str, int]:
    """GPT-2's bijection between bytes and printable characters, from the character's side."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in set(printable)]
    return {chr(byte): byte for byte in printable} | {chr(256 + i): byte for i, byte in enumerate(others)}


class _Step(Protocol):
    """One decoder of the chain. ``feed`` takes the next pieces and returns those that are settled; ``flush`` ends
    it."""

    def feed(self, pieces: list[str]) -> list[str]: ...

    def flush(self) -> list[str]: ...


class _Stateless:
    def flush(self) -> list[str]:
        return []


class _EachPiece(_Stateless):
    """Replace, or a Strip before the pieces are fused: a function of one piece."""

    def __init__(self, function: Callable[[str], str]) -> None:
        self._function = function

    def feed(self, pieces: list[str]) -> list[str]:
        return [self._function(piece) for piece in pieces]


class _AfterFirst(_Stateless):
    """Metaspace, WordPiece, or no decoder at all: the first piece is spelled otherwise than the others."""

    def __init__(self, first: Callable[[str], str], others: Callable[[str], str], *, continues: bool) -> None:
        self._at_first = not continues
        self._first, self._others = first, others

    def feed(self, pieces: list[str]) -> list[str]:
        if not pieces:
            return pieces
        if self._at_first:
            self._at_first = False
            return [self._first(pieces[0]), *map(self._others, pieces[1:])]
        return list(map(self._others, pieces))


class _HoldLast:
    """BPEDecoder: a word's suffix is a space, but nothing at the very end; so the last piece waits for its
    successor."""

    def __init__(self, suffix: str) -> None:
        self._suffix = suffix
        self._held: str | None = None

    def feed(self, pieces: list[str]) -> list[str]:
        settled = []
        for piece in pieces:
            if self._held is not None:
                settled.append(self._held.replace(self._suffix, " "))
            self._held = piece
        return settled

    def flush(self) -> list[str]:
        return [] if self._held is None else [self._held.replace(self._suffix, "")]


class _ByteLevel:
    """All pieces are bytes spelled with printable characters; the bytes are read as UTF-8, errors as U+FFFD."""

    def __init__(self) -> None:
        self._utf8 = codecs.getincrementaldecoder("utf-8")("replace")

    def feed(self, pieces: list[str]) -> list[str]:
        return [self._utf8.decode(byte_level_bytes(piece)) for piece in pieces]

    def flush(self) -> list[str]:
        return [self._utf8.decode(b"", final=True)]


class _ByteFallback:
    """A run of ``<0xE4>`` tokens is text if the whole run is valid UTF-8, else one U+FFFD a byte.

    So a run is settled when it ends, or as soon as no continuation can make it valid.
    """

    def __init__(self) -> None:
        self._run = bytearray()
        self._utf8 = codecs.getincrementaldecoder("utf-8")("strict")
        self._broken = False

    def feed(self, pieces: list[str]) -> list[str]:
        settled: list[str] = []
        for piece in pieces:
            if len(piece) == 6 and (match := _BYTE_TOKEN.fullmatch(piece)):
                settled += self._add(int(match[1], 16))
            else:
                settled += self.flush()
                settled.append(piece)
        return settled

    def _add(self, byte: int) -> list[str]:
        if self._broken:
            return [_REPLACEMENT]
        self._run.append(byte)
        try:
            self._utf8.decode(bytes((byte,)))
        except UnicodeDecodeError:
            self._broken = True
            return [_REPLACEMENT] * len(self._run)
        return []

    def flush(self) -> list[str]:
        if not self._run:
            return []
        run, broken = bytes(self._run), self._broken
        self._run.clear()
        self._utf8.reset()
        self._broken = False
        if broken:
            return []
        try:
            return [run.decode()]
        except UnicodeDecodeError:
            return [_REPLACEMENT] * len(run)


class _StripStart(_Stateless):
    """Strip after the pieces are fused: up to ``count`` leading characters of the whole text go."""

    def __init__(self, content: str, count: int) -> None:
        self._content = content
        self._left = count

    def feed(self, pieces: list[str]) -> list[str]:
        if not self._left:
            return pieces
        text = "".join(pieces)
        start = 0
        while start < len(text) and self._left and text[start] == self._content:
            start += 1
            self._left -= 1
        if start < len(text):
            self._left = 0
        return [text[start:]]


class _CleanUp:
    """transformers' ``clean_up_tokenization_spaces``, which rewrites the whole text.

    No rewriting reaches over a character that appears in no rule, so the text up to the last such one is settled.
    """

    def __init__(self) -> None:
        self._held: list[str] = []

    def feed(self, pieces: list[str]) -> list[str]:
        text = "".join(pieces)
        settled = len(text.rstrip(" .?!,'ntmsver"))
        if not settled:
            self._held.append(text)
            return []
        self._held.append(text[:settled])
        return [*self.flush(text[settled:])]

    def flush(self, rest: str = "") -> list[str]:
        text = clean_up("".join(self._held))
        self._held = [rest]
        return [text]


def clean_up(text: str) -> str:
    """What transformers does to decoded text under ``clean_up_tokenization_spaces``."""
    for spaced in (" .", " ?", " !", " ,"):
        text = text.replace(spaced, spaced[1:])
    text = text.replace(" ' ", "'")
    for spaced in (" n't", " 'm", " 's", " 've", " 're"):
        text = text.replace(spaced, spaced[1:])
    return text


def byte_level_bytes(piece: str) -> bytes:
    """The bytes that a byte-level token spells; one with a character outside the alphabet (an added token) spells
    itself."""
    table = _byte_of_character()
    try:
        return bytes([table[character] for character in piece])
    except KeyError:
        return piece.encode()


class DecoderStream:
    """One sequence on its way through the steps."""

    __slots__ = ("_steps",)

    def __init__(self, steps: list[_Step]) -> None:
        self._steps = steps

    def feed(self, token: str) -> str:
        """The text that is settled by this token, often empty."""
        pieces = [token]
        for step in self._steps:
            pieces = step.feed(pieces)
        return "".join(pieces)

    def flush(self) -> str:
        """What was waiting for a successor; the stream is over afterwards."""
        pieces: list[str] = []
        for step in self._steps:
            pieces = step.feed(pieces) + step.flush()
        return "".join(pieces)


class TokenDecoder:
    """The decoder chain of one tokenizer, read once; ``start`` begins the stream of one sequence.

    Raises ArtifactError for a decoder that cannot be streamed exactly (CTC, a Strip at the end of the text, a Replace
    over several characters of fused text); no text model in use has one.
    """

    def __init__(self, tokenizer: Tokenizer, *, clean_up_spaces: bool) -> None:
        decoder = tokenizer.decoder
        chain = [] if decoder is None else _flatten(json.loads(decoder.__getstate__()))
        self._makers: list[Callable[[bool], _Step]] = []
        self.byte_level = any(spec["type"] == "ByteLevel" for spec in chain)
        self.byte_fallback = any(spec["type"] == "ByteFallback" for spec in chain)
        if decoder is None:
            self._makers.append(lambda continues: _AfterFirst(str, lambda piece: " " + piece, continues=continues))
        fused = False
        for spec in chain:
            if spec["type"] != "Fuse":
                self._makers.append(_maker(spec, fused=fused))
            fused = fused or spec["type"] in {"Fuse", "ByteLevel"}
        if clean_up_spaces:
            self._makers.append(lambda _: _CleanUp())

    def start(self, *, continues: bool) -> DecoderStream:
        """A stream for one sequence. ``continues``: text stands before it, so its first token is no beginning."""
        return DecoderStream([make(continues) for make in self._makers])

    def token_bytes(self, token: str) -> bytes | None:
        """The bytes of a token that stands for bytes rather than for text; None for the others."""
        if self.byte_level:
            return byte_level_bytes(token)
        if self.byte_fallback and (match := _BYTE_TOKEN.fullmatch(token)):
            return bytes((int(match[1], 16),))
        return None


def _flatten(spec: dict[str, Any]) -> list[dict[str, Any]]:
    if spec["type"] == "Sequence":
        return [leaf for inner in spec["decoders"] for leaf in _flatten(inner)]
    return [spec]


def _maker(spec: dict[str, Any], *, fused: bool) -> Callable[[bool], _Step]:
    """How to make the step for one decoder; ``fused``: the decoders before it have joined the pieces into one text."""
    kind = spec["type"]
    if kind == "Replace":
        replace = _replace(spec)
        if not fused or len(spec["pattern"].get("String", "")) == 1:
            return lambda _: _EachPiece(replace)
    elif kind == "Strip" and spec["stop"] == 0:
        content, count = spec["content"], spec["start"]
        if fused:
            return lambda continues: _StripStart(content, 0 if continues else count)
        return lambda _: _EachPiece(lambda piece: "".join(_StripStart(content, count).feed([piece])))
    elif not fused and kind in _PIECE_DECODERS:
        return _PIECE_DECODERS[kind](spec)
    raise ArtifactError(
        f"The tokenizer's decoder {json.dumps(spec, ensure_ascii=False)} cannot be streamed exactly; "
        "save the tokenizer with a usual one (ByteLevel, Metaspace, WordPiece, or Replace + ByteFallback + Fuse)."
    )


def _replace(spec: dict[str, Any]) -> Callable[[str], str]:
    pattern, content = spec["pattern"], spec["content"]
    if "String" in pattern:
        return lambda piece: piece.replace(pattern["String"], content)
    decoder = decoders.Replace(Regex(pattern["Regex"]), content)  # the regex dialect is Oniguruma's: ask the original
    return lambda piece: decoder.decode([piece])


def _metaspace(spec: dict[str, Any]) -> Callable[[bool], _Step]:
    mark = spec["replacement"]
    first = "" if spec["prepend_scheme"] != "never" else " "
    return lambda continues: _AfterFirst(
        lambda piece: piece.replace(mark, first), lambda piece: piece.replace(mark, " "), continues=continues
    )


def _word_piece(spec: dict[str, Any]) -> Callable[[bool], _Step]:
    prefix = spec["prefix"]
    clean = _clean_up_word_piece if spec["cleanup"] else str

    def others(piece: str) -> str:
        return clean(piece.removeprefix(prefix) if piece.startswith(prefix) else " " + piece)

    return lambda continues: _AfterFirst(clean, others, continues=continues)


def _clean_up_word_piece(piece: str) -> str:
    """The WordPiece decoder's own cleaning, which looks at one piece and knows one contraction more."""
    for spaced in (" .", " ?", " !", " ,"):
        piece = piece.replace(spaced, spaced[1:])
    piece = piece.replace(" ' ", "'").replace(" n't", "n't").replace(" 'm", "'m").replace(" do not", " don't")
    for spaced in (" 's", " 've", " 're"):
        piece = piece.replace(spaced, spaced[1:])
    return piece


_PIECE_DECODERS: dict[str, Callable[[dict[str, Any]], Callable[[bool], _Step]]] = {
    "ByteFallback": lambda _: lambda _: _ByteFallback(),
    "ByteLevel": lambda _: lambda _: _ByteLevel(),
    "BPEDecoder": lambda spec: lambda _: _HoldLast(spec["suffix"]),
    "Metaspace": _metaspace,
    "WordPiece": _word_piece,
}

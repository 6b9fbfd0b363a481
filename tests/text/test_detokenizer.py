"""Streamed text is the whole decode, whatever the tokens and however they come."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import decoders

from pllm.runtime.detokenizer import IncrementalDetokenizer
from pllm.runtime.errors import ArtifactError
from pllm.runtime.tokenizer import Tokenizer

from .conftest import KINDS, SPECIAL, byte_fallback, byte_level, metaspace, word_piece

TOKENIZERS = {kind: Tokenizer(make(), config) for kind, (make, config) in KINDS.items()}


def streamed(tokenizer: Tokenizer, ids: list[int], *, chunks: list[int] | None = None, **options: bool) -> list[str]:
    detokenizer = IncrementalDetokenizer(tokenizer, **options)
    deltas, start = [], 0
    for size in chunks or [1] * len(ids):
        deltas.append(detokenizer.feed(ids[start : start + size]))
        start += size
    return [*deltas, detokenizer.feed(ids[start:]), detokenizer.flush()]


@pytest.mark.parametrize("kind", TOKENIZERS)
@pytest.mark.parametrize("skip_special_tokens", [True, False])
@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_any_tokens_stream_to_the_whole_decode(kind: str, skip_special_tokens: bool, data: st.DataObject) -> None:
    tokenizer = TOKENIZERS[kind]
    token_id = st.integers(0, tokenizer.vocab_size + 3)
    ids = data.draw(st.lists(token_id, max_size=40))
    chunks = data.draw(st.lists(st.integers(0, 5), max_size=20))
    deltas = streamed(tokenizer, ids, chunks=chunks, skip_special_tokens=skip_special_tokens)
    assert "".join(deltas) == tokenizer.decode(ids, skip_special_tokens=skip_special_tokens)


@settings(max_examples=300, deadline=None)
@given(data=st.binary(max_size=24))
@pytest.mark.parametrize("kind", ["byte level", "byte fallback, stripped"])
def test_any_bytes_stream_to_the_whole_decode(kind: str, data: bytes) -> None:
    """Broken UTF-8 of every sort: each byte a token of its own."""
    tokenizer = TOKENIZERS[kind]
    of_byte = {tokenizer.token_bytes(i): i for i in range(tokenizer.vocab_size) if len(tokenizer.token_bytes(i)) == 1}
    ids = [of_byte[bytes((byte,))] for byte in data]
    assert "".join(streamed(tokenizer, ids)) == tokenizer.decode(ids)


@settings(max_examples=100, deadline=None)
@given(text=st.text(st.characters(blacklist_categories=["Cs"]), max_size=12))
@pytest.mark.parametrize("kind", ["byte level", "byte fallback, stripped"])
def test_valid_text_never_shows_half_a_character(kind: str, text: str) -> None:
    tokenizer = TOKENIZERS[kind]
    deltas = streamed(tokenizer, tokenizer.encode(text.replace("\ufffd", ""), add_special_tokens=False))
    assert "\ufffd" not in "".join(deltas)


def test_characters_come_as_soon_as_they_are_whole() -> None:
    tokenizer = TOKENIZERS["byte level"]
    ids = [tokenizer.token_to_id(c) for c in "ðŁĺĢ"]  # U+1F600, a byte a token
    assert streamed(tokenizer, ids) == ["", "", "", "😀", "", ""]
    assert streamed(tokenizer, ids[:2]) == ["", "", "", "\ufffd"]


def test_a_byte_run_that_turns_out_broken_is_not_shown_as_text() -> None:
    tokenizer = TOKENIZERS["byte fallback"]
    ids = [tokenizer.token_to_id(f"<0x{byte:02X}>") for byte in (0xE4, 0xBD, 0xA0, 0xFF)]
    assert "".join(streamed(tokenizer, ids)) == tokenizer.decode(ids) == "\ufffd" * 4
    assert streamed(tokenizer, [*ids[:3], tokenizer.token_to_id("a")])[3] == "你a"


def test_a_broken_run_does_not_pile_up() -> None:
    """A model that babbles bytes streams on, a piece a token: nothing is decoded twice or kept."""
    tokenizer = TOKENIZERS["byte fallback"]
    lone = tokenizer.token_to_id("<0xFF>")
    assert streamed(tokenizer, [lone] * 1000) == ["\ufffd"] * 1000 + ["", ""]


@pytest.mark.parametrize(
    "kind, prompt, answer",
    [
        ("metaspace", "the a", "▁the"),
        ("byte fallback, stripped", "a", "▁the"),
        ("word piece", "the a", "b"),
        ("word level", "a", "a"),
    ],
)
def test_a_continuation_keeps_its_space(kind: str, prompt: str, answer: str) -> None:
    tokenizer = TOKENIZERS[kind]
    before = tokenizer.encode(prompt, add_special_tokens=False)
    after = [tokenizer.token_to_id(answer)]
    text = "".join(streamed(tokenizer, after, continues=True))
    assert tokenizer.decode(before) + text == tokenizer.decode(before + after)
    assert text.startswith(" ")


def test_spaces_between_special_tokens() -> None:
    tokenizer = TOKENIZERS["word level"]
    ids = [tokenizer.token_to_id(token) for token in ("a", SPECIAL[0], SPECIAL[1], "a")]
    options = {"skip_special_tokens": False, "spaces_between_special_tokens": False}
    assert "".join(streamed(tokenizer, ids, **options)) == "a <s></s> a"


@pytest.mark.parametrize(
    "decoder",
    [
        decoders.CTC(),
        decoders.Sequence([decoders.Fuse(), decoders.Strip(" ", 0, 1)]),
        decoders.Sequence([decoders.Fuse(), decoders.Replace("ab", "c")]),
        decoders.Sequence([decoders.Fuse(), decoders.ByteFallback()]),
    ],
)
def test_a_decoder_that_cannot_be_streamed_exactly_is_refused(decoder: object) -> None:
    backend = byte_fallback()
    backend.decoder = decoder
    with pytest.raises(ArtifactError, match="cannot be streamed"):
        Tokenizer(backend, {})


def test_token_texts_and_bytes() -> None:
    bytes_first = Tokenizer(byte_level(), {})
    half = bytes_first.token_to_id("ä")  # byte 0xE4
    assert (bytes_first.token_text(half), bytes_first.token_bytes(half)) == ("\ufffd", b"\xe4")
    assert bytes_first.token_bytes(bytes_first.token_to_id("<tool call>")) == b"<tool call>"
    fallback = TOKENIZERS["byte fallback, stripped"]
    assert fallback.token_bytes(fallback.token_to_id("<0xE4>")) == b"\xe4"
    assert fallback.token_text(fallback.token_to_id("▁the")) == " the"
    assert fallback.token_bytes(fallback.token_to_id("▁你好")) == " 你好".encode()
    assert fallback.token_text(10**6) == ""
    assert Tokenizer(metaspace("always"), {}).token_text(2) == " the"
    assert Tokenizer(word_piece(cleanup=False), {}).token_text(3) == "a"

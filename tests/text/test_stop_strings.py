"""Stop strings end an answer at the same place however its text is split over tokens."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pllm.runtime.detokenizer import SequenceText
from pllm.runtime.sampling_params import SamplingParams
from pllm.runtime.stop_strings import StopStrings
from pllm.runtime.tokenizer import Tokenizer

from .conftest import byte_level

TOKENIZER = Tokenizer(byte_level(), {})


def bytes_as_tokens(text: str) -> list[int]:
    """One token a byte: every split of characters happens."""
    ids = {TOKENIZER.token_bytes(i): i for i in range(TOKENIZER.vocab_size)}
    return [ids[bytes((byte,))] for byte in text.encode()]


def answer(ids: list[int], finish: str = "length", **fields: object) -> tuple[list[str], str | None]:
    """The deltas of an answer that comes a token at a time, and the stop string met."""
    text = SequenceText(TOKENIZER, SamplingParams(**fields))
    deltas = []
    for i, token_id in enumerate(ids):
        final = i == len(ids) - 1
        deltas.append(text.feed([token_id], final=final, ends_with_stop_token=final and finish == "stop"))
        if text.stopped_by is not None:
            break
    return deltas, text.stopped_by


def first_to_end(text: str, stops: list[str]) -> tuple[int, int, str] | None:
    """By brute force: (end, start, string) of the stop string that is complete first, the longest if several are."""
    for end in range(1, len(text) + 1):
        matches = [stop for stop in stops if text[:end].endswith(stop)]
        if matches:
            longest = max(matches, key=len)
            return end, end - len(longest), longest
    return None


few = st.text("ab\u4f60", min_size=1, max_size=5)


@settings(max_examples=500, deadline=None)
@given(
    text=st.text("ab\u4f60", max_size=20),
    stops=st.lists(few, min_size=1, max_size=3),
    include=st.booleans(),
    data=st.data(),
)
def test_cut_at_the_first_stop_at_every_split(text: str, stops: list[str], include: bool, data: st.DataObject) -> None:
    ids = bytes_as_tokens(text)
    cuts = data.draw(st.lists(st.integers(1, 4), max_size=12))
    sequence = SequenceText(TOKENIZER, SamplingParams(stop=stops, include_stop_str_in_output=include))
    shown, start = "", 0
    expected = first_to_end(text, stops)
    whole = text if expected is None else text[: expected[0] if include else expected[1]]
    for size in [*cuts, len(ids)]:
        shown += sequence.feed(ids[start : start + size])
        start += size
        assert whole.startswith(shown), "what was shown is never taken back"
        if sequence.stopped_by is not None:
            break
    else:
        shown += sequence.feed([], final=True)
    assert shown == whole
    assert sequence.stopped_by == (None if expected is None else expected[2])


def test_only_what_may_become_a_stop_is_held_back() -> None:
    deltas, stopped = answer(bytes_as_tokens("a\nb\n\nc"), stop=["\n\n"])
    assert (deltas, stopped) == (["a", "", "\nb", "", ""], "\n\n")


def test_a_held_back_beginning_comes_at_the_end() -> None:
    assert answer(bytes_as_tokens("ab<|"), stop=["<|end|>"]) == (["a", "b", "", "<|"], None)


def test_an_included_stop_holds_nothing_back() -> None:
    deltas, stopped = answer(bytes_as_tokens("ab<|x"), stop=["<|x"], include_stop_str_in_output=True)
    assert (deltas, stopped) == (["a", "b", "<", "|", "x"], "<|x")


def test_the_tokens_after_a_stop_are_not_taken() -> None:
    text = SequenceText(TOKENIZER, SamplingParams(stop="b"))
    assert text.feed(bytes_as_tokens("abc")) == "a"
    assert (text.num_tokens, text.stopped_by) == (2, "b")


@pytest.mark.parametrize(
    "min_tokens, shown", [(0, "x"), (1, "x"), (2, "x"), (3, "xaba"), (6, "xabaab"), (7, "xabaab"), (8, "xabaabab")]
)
def test_no_stop_before_min_tokens(min_tokens: int, shown: str) -> None:
    """A stop string counts when a token after the first min_tokens completes it."""
    deltas, _ = answer(bytes_as_tokens("xabaabab"), stop=["ab"], min_tokens=min_tokens, max_tokens=16)
    assert "".join(deltas) == shown


def test_a_stop_completed_by_the_flush_counts() -> None:
    """Half a character at the end becomes U+FFFD, and that can be what a stop string waits for."""
    ids = bytes_as_tokens("a😀")[:-1]
    assert answer(ids, stop=["\ufffd"]) == (["a", "", "", ""], "\ufffd")
    assert answer(ids) == (["a", "", "", "\ufffd"], None)


def test_the_text_of_a_stop_token_is_shown_only_if_stops_are() -> None:
    ids = bytes_as_tokens("ab")
    assert answer(ids, "stop") == (["a", ""], None)
    assert answer(ids, "stop", include_stop_str_in_output=True) == (["a", "b"], None)


def test_no_text_without_detokenize() -> None:
    text = SequenceText(TOKENIZER, SamplingParams(detokenize=False))
    assert text.feed(bytes_as_tokens("abc"), final=True) == ""
    assert text.num_tokens == 3


def test_a_long_stop_string_costs_no_more_than_its_text() -> None:
    """The worst text for a naive search, which would compare 5,000 characters at each of 20,000 places."""
    stops = StopStrings(["a" * 5000 + "b"])
    assert stops.feed("a" * 20_000) is None
    assert stops.held_back == 5000
    match = stops.feed("b")
    assert match is not None and match.end == 1

"""Token deltas in, text deltas and a RequestOutput out."""

import pytest

from pllm.runtime.conversation import readable_message
from pllm.runtime.errors import RequestError
from pllm.runtime.generation_config import GenerationConfig
from pllm.runtime.intake import Intake, Prompt
from pllm.runtime.outputs import Logprob
from pllm.runtime.request_text import RequestText
from pllm.runtime.sampling_params import SamplingParams
from pllm.runtime.step import TokenDelta, TokenLogprobs
from pllm.runtime.tokenizer import Tokenizer

from .conftest import KINDS, byte_level

TOKENIZER = Tokenizer(byte_level(), {"eos_token": "</s>"})
END = TOKENIZER.eos_token_id


def intake(tokenizer: Tokenizer = TOKENIZER, **limits: int) -> Intake:
    limits = {"vocab_size": 400, "max_model_len": 100} | limits
    return Intake(tokenizer, GenerationConfig(eos_token_ids=(7,)), **limits)


def request(prompt: str = "prompt", **fields: object) -> RequestText:
    way_in = intake()
    return way_in.request("r", way_in.prompt(prompt), SamplingParams(**fields))


def ids(text: str) -> list[int]:
    return TOKENIZER.encode(text, add_special_tokens=False)


def letters(text: str) -> list[int]:
    return [TOKENIZER.token_to_id(letter) for letter in text]


def test_deltas_add_up_to_the_output() -> None:
    text = request(n=2)
    first = text.feed(TokenDelta("r", 0, ids("one"), num_cached_tokens=3))
    assert (first.text, first.index, first.finish_reason, first.logprobs) == ("one", 0, None, None)
    text.feed(TokenDelta("r", 1, ids("two")))
    text.feed(TokenDelta("r", 0, ids(" more"), finish_reason="length"))
    assert not text.finished
    assert text.metrics.finished_time is None
    last = text.feed(TokenDelta("r", 1, [END], finish_reason="stop"))
    assert (last.text, last.token_ids, last.finish_reason, last.ended_by_text) == ("", [END], "stop", False)
    output = text.output()
    assert output.finished
    assert [answer.text for answer in output.outputs] == ["one more", "two"]
    assert [answer.finish_reason for answer in output.outputs] == ["length", "stop"]
    assert output.outputs[1].token_ids == [*ids("two"), END]
    assert (output.prompt, output.prompt_token_ids, output.num_cached_tokens) == ("prompt", ids("prompt"), 3)
    assert text.num_output_tokens == len(ids("one")) + len(ids(" more")) + len(ids("two")) + 1


def test_a_stop_string_ends_one_answer_and_asks_for_its_abort() -> None:
    text = request(n=2, stop="b", logprobs=0)
    logprobs = [TokenLogprobs(token, -1.0, 1, ()) for token in letters("abcd")]
    change = text.feed(TokenDelta("r", 0, letters("abcd"), logprobs))
    assert (change.text, change.finish_reason, change.stop_reason, change.ended_by_text) == ("a", "stop", "b", True)
    assert change.token_ids == letters("ab"), "the tokens after the stop string are nobody's"
    assert len(change.logprobs) == 2
    assert text.feed(TokenDelta("r", 0, letters("e"))) is None, "the engine had not heard of it yet"
    assert text.output().outputs[0].cumulative_logprob == -2.0
    assert not text.finished


def test_a_stop_string_in_the_last_delta_wins_over_length_and_needs_no_abort() -> None:
    change = request(stop="b").feed(TokenDelta("r", 0, letters("ab"), finish_reason="length"))
    assert (change.finish_reason, change.stop_reason, change.ended_by_text) == ("stop", "b", False)


def test_logprobs_are_by_token_with_the_chosen_first() -> None:
    text = request(logprobs=2, prompt_logprobs=1)
    half, other = letters("ä")[0], letters("x")[0]
    prompt_logprobs = [TokenLogprobs(token, -2.0, 5, ((other, -0.1, 1),)) for token in ids("prompt")[1:]]
    chosen = TokenLogprobs(half, -3.0, 9, ((other, -0.2, 1), (half, -3.0, 9)))
    change = text.feed(TokenDelta("r", 0, [half], [chosen], prompt_logprobs=prompt_logprobs))
    (position,) = change.logprobs
    assert list(position) == [half, other]
    assert position[half] == Logprob(-3.0, 9, "\ufffd")
    assert position[other] == Logprob(-0.2, 1, "x")
    output = text.output()
    assert output.prompt_logprobs[0] is None
    assert [list(entry) for entry in output.prompt_logprobs[1:]] == [[t, other] for t in ids("prompt")[1:]]
    assert repr(position[other]) == "Logprob(logprob=-0.2, rank=1, decoded_token='x')"


def test_an_error_ends_the_answer_with_its_reason() -> None:
    text = request()
    text.feed(TokenDelta("r", 0, ids("so far")))
    change = text.feed(TokenDelta("r", 0, [], finish_reason="error", error="the logits are not numbers"))
    assert (change.finish_reason, change.error) == ("error", "the logits are not numbers")
    assert text.output().outputs[0].text == "so far"


def test_half_a_character_at_the_end_is_given_up() -> None:
    text = request()
    assert text.feed(TokenDelta("r", 0, letters("aðŁ"))).text == "a"
    assert text.feed(TokenDelta("r", 0, letters("ĺ"), finish_reason="length")).text == "\ufffd"


@pytest.mark.parametrize("is_chat, expected", [(False, " the"), (True, "the")])
def test_a_completion_continues_its_prompt_and_a_chats_answer_begins_anew(is_chat: bool, expected: str) -> None:
    make, config = KINDS["byte fallback, stripped"]
    tokenizer = Tokenizer(make(), config)
    text = intake(tokenizer).request("r", Prompt((tokenizer.token_to_id("a"),), is_chat=is_chat), SamplingParams())
    word = [tokenizer.token_to_id("▁the")]
    assert text.feed(TokenDelta("r", 0, word)).text == expected
    only_special = intake(tokenizer).request("r", Prompt((tokenizer.token_to_id("<s>"),)), SamplingParams())
    assert only_special.feed(TokenDelta("r", 0, word)).text == "the", "nothing that is shown stands before it"


def test_the_request_for_the_engine() -> None:
    way_in = intake()
    made = way_in.request(
        "r", way_in.prompt("ab"), SamplingParams(bad_words=["fox"]), priority=2, cache_salt="s", arrival_time=5.0
    )
    assert made.request.eos_token_ids == (7, END)
    assert (made.request.priority, made.request.cache_salt, made.request.arrival_time) == (2, "s", 5.0)
    assert made.metrics.arrival_time == 5.0
    assert tuple(ids("fox")) in made.request.bad_words_token_ids
    assert (
        intake(max_model_len=10)
        .request("r", Prompt((1,) * 4), SamplingParams(max_tokens=None))
        .request.params.max_tokens
        == 6
    )


def test_bad_words_as_vllm_spells_them() -> None:
    """A word after a space counts when it is spelled with as many tokens, beginning with another one."""
    way_in = intake()
    spellings = way_in.bad_words_token_ids([" the", "qqq"])
    assert spellings[0] == tuple(ids("the"))
    spaced = tuple(ids(" the"))
    assert (spaced in spellings) == (len(spaced) == len(ids("the")) and spaced[0] != ids("the")[0])
    assert tuple(ids("qqq")) in spellings


def test_messages_are_made_readable() -> None:
    parts = [
        {"type": "text", "text": "a"},
        {"type": "input_text", "text": "b"},
        {"type": "refusal", "refusal": "no"},
        "c",
    ]
    assert readable_message({"role": "user", "content": parts}, in_parts=False)["content"] == "a\nb\nno\nc"
    assert [part["text"] for part in readable_message({"content": parts}, in_parts=True)["content"]] == [
        "a",
        "b",
        "no",
        "c",
    ]
    assert readable_message({"content": "x"}, in_parts=True) == {"content": "x"}
    for arguments, expected in (
        ('{"a": [1]}', {"a": [1]}),
        ("", {}),
        ("{broken", "{broken"),
        ("[1]", "[1]"),
        ({"b": 2}, {"b": 2}),
    ):
        message = {"tool_calls": [{"function": {"name": "f", "arguments": arguments}}]}
        assert readable_message(message, in_parts=False)["tool_calls"][0]["function"]["arguments"] == expected
    for strange in ([1], [{"function": "f"}], [{}], "text"):
        assert readable_message({"tool_calls": strange}, in_parts=False) == {"tool_calls": strange}


@pytest.mark.parametrize(
    "part", [{"type": "image_url"}, {"type": "text"}, {"type": "text", "text": 3}, {}, 5, {"type": ["text"]}]
)
def test_content_that_is_not_text_is_refused(part: object) -> None:
    with pytest.raises(RequestError, match="reads text only") as caught:
        readable_message({"content": [part]}, in_parts=False)
    assert caught.value.param == "messages"

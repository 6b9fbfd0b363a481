"""Grammars of answers with calls, in every style, over tokens: what they let through and what not."""

import json
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from pllm.runtime.grammar import Grammar, Vocabulary
from pllm.runtime.message.call_grammar import AnswerGrammar, CallableTool
from pllm.runtime.message.style import MessageStyle
from pllm.runtime.structured_outputs import StructuredOutputsParams

END = 256
MARKERS = ("<tool_call>", "</tool_call>", "[TOOL_CALLS]", "[ARGS]", "<|python_tag|>", "<think>", "</think>")
CITY = {
    "type": "object",
    "properties": {"city": {"enum": ["Paris", "Rome"]}},
    "required": ["city"],
    "additionalProperties": False,
}
TOOLS = (CallableTool("weather", CITY, strict=True), CallableTool("time", CITY))
HERMES = MessageStyle("hermes")
LLAMA = MessageStyle("llama3_json")
MISTRAL = MessageStyle("mistral")
NAMING = MessageStyle("mistral", names_calls=True)


@cache
def tokenizer(*, marked: bool) -> Tokenizer:
    """One token a byte, its id the byte; an end token; and, if ``marked``, the styles' markers and a tag as tokens."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    vocab = {chr(byte): byte for byte in printable} | {chr(256 + i): byte for i, byte in enumerate(others)}
    made = Tokenizer(models.BPE(vocab, []))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    made.decoder = decoders.ByteLevel()
    made.add_special_tokens([AddedToken("<|end|>", special=True)])
    if marked:
        made.add_tokens([AddedToken(text, special=False) for text in (*MARKERS, "<b>")])
    return made


@cache
def vocabulary(*, marked: bool) -> Vocabulary:
    with TemporaryDirectory() as folder:
        path = Path(folder) / "tokenizer.json"
        tokenizer(marked=marked).save(str(path))
        return Vocabulary(path, tokenizer(marked=marked).get_vocab_size(), [END])


def grammar_of(style: MessageStyle, *, marked: bool) -> AnswerGrammar:
    added = tokenizer(marked=marked).get_added_tokens_decoder()
    ids = {token.content: token_id for token_id, token in added.items()}
    return AnswerGrammar(style, ids.get, added.keys() - {END})


def allows(form: StructuredOutputsParams | None, text: str | list[int], *, marked: bool) -> bool:
    """Whether the form lets every token of the text through, and the end after it."""
    assert form is not None
    matcher = Grammar(form, vocabulary(marked=marked)).matcher()
    ids = tokenizer(marked=marked).encode(text).ids if isinstance(text, str) else text
    for place, token_id in enumerate([*ids, END]):
        mask = matcher.allowed(ids[:place])
        if not mask[token_id // 8] >> token_id % 8 & 1:
            return False
    return True


def call(style: MessageStyle, name: str, arguments: str) -> str:
    if style == HERMES or style.thinks:
        return f'<tool_call>\n{{"name": "{name}", "arguments": {arguments}}}\n</tool_call>'
    if style == LLAMA:
        return f'{{"name": "{name}", "parameters": {arguments}}}'
    if style == NAMING:
        return f"[TOOL_CALLS]{name}[ARGS]{arguments}"
    return f'[TOOL_CALLS][{{"name": "{name}", "arguments": {arguments}}}]'


RIGHT, WRONG = '{"city": "Rome"}', '{"city": "Oslo"}'


@pytest.mark.parametrize("marked", [True, False])
@pytest.mark.parametrize("style", [HERMES, LLAMA, MISTRAL, NAMING])
def test_a_call_that_is_begun_is_right(style: MessageStyle, marked: bool) -> None:
    form = grammar_of(style, marked=marked).choice(TOOLS, "prompt", several=True)
    for before in ("",) if style == LLAMA else ("", "I say: ", "naïve 😀\n"):
        assert allows(form, before + call(style, "weather", RIGHT), marked=marked)
        assert not allows(form, before + call(style, "weather", WRONG), marked=marked)
        assert allows(form, before + call(style, "time", WRONG), marked=marked)  # it is not strict
        assert not allows(form, before + call(style, "time", "[1]"), marked=marked)
        assert not allows(form, before + call(style, "nobody", RIGHT), marked=marked)
    for text in ("", "Hello.", "<tool [TOOL {x}", "[1] is a reference", "a\n\n{"):
        assert allows(form, text, marked=marked), text
    if style != LLAMA:
        assert allows(form, '{"city": "Oslo"}', marked=marked)


@pytest.mark.parametrize("style", [HERMES, MISTRAL, NAMING])
def test_a_marker_that_is_spelled_out_begins_a_call_too(style: MessageStyle) -> None:
    form = grammar_of(style, marked=True).choice(TOOLS, "prompt", several=True)
    for arguments, right in ((RIGHT, True), (WRONG, False)):
        text = call(style, "weather", arguments)
        end = text.find("]" if text.startswith("[") else ">") + 1
        ids = [*text[:end].encode(), *tokenizer(marked=True).encode(text[end:]).ids]
        assert allows(form, ids, marked=True) is right


@pytest.mark.parametrize("style", [HERMES, LLAMA, NAMING])
def test_one_call_or_several(style: MessageStyle) -> None:
    one = call(style, "weather", RIGHT)
    two = one + {HERMES: "\n", LLAMA: "; "}.get(style, "") + one
    grammar = grammar_of(style, marked=True)
    assert allows(grammar.choice(TOOLS, "prompt", several=True), two, marked=True)
    assert not allows(grammar.choice(TOOLS, "prompt", several=False), two, marked=True)
    assert allows(grammar.calls(TOOLS, "prompt", several=True), two, marked=True)
    assert not allows(grammar.calls(TOOLS, "prompt", several=False), two, marked=True)
    assert not allows(grammar.calls(TOOLS, "prompt", several=True), "Hello.", marked=True)
    # What is demanded keeps to its schema, strict or not.
    assert not allows(grammar.calls(TOOLS, "prompt", several=True), call(style, "time", WRONG), marked=True)


def test_llama_s_calls_are_whole_messages() -> None:
    form = grammar_of(LLAMA, marked=True).choice(TOOLS, "prompt", several=True)
    for text in (' {"name"', '[{"name"', "<|python_tag|>{x", "[ {"):
        assert not allows(form, text, marked=True), text
    assert allows(form, "<|python_tag|>" + call(LLAMA, "weather", RIGHT), marked=True)


@pytest.mark.parametrize("marked", [True, False])
def test_thoughts_come_first(marked: bool) -> None:
    style = MessageStyle("hermes", thinks=True)
    right, wrong = (call(style, "weather", arguments) for arguments in (RIGHT, WRONG))
    form = grammar_of(style, marked=marked).choice(TOOLS, "prompt", several=True)
    for thoughts in ("", "<think>\nHm.\n</think>\n\n", "<think></think>"):
        assert allows(form, thoughts + "Hello.", marked=marked)
        assert allows(form, thoughts + right, marked=marked)
        assert not allows(form, thoughts + wrong, marked=marked)
    begun = grammar_of(style, marked=marked).choice(TOOLS, "prompt<think>", several=True)
    assert allows(begun, "Hm.</think>\n\nHello.", marked=marked)
    assert not allows(begun, f"Hm.</think>{wrong}", marked=marked)


def test_added_tokens_may_stand_in_a_text() -> None:
    form = grammar_of(HERMES, marked=True).choice(TOOLS, "prompt", several=True)
    assert allows(form, "a <b> c<b><b>" + call(HERMES, "weather", RIGHT) + "<b>.", marked=True)
    assert not allows(form, "a <b> c<b>" + call(HERMES, "weather", WRONG), marked=True)


@pytest.mark.parametrize("style", [HERMES, MISTRAL, NAMING])
def test_calls_or_a_form(style: MessageStyle) -> None:
    free = [CallableTool("weather", CITY)]
    for form, good, bad in (
        (StructuredOutputsParams(json=CITY), RIGHT, WRONG),
        (StructuredOutputsParams(regex="[a-c]+"), "abc", "d"),
        (StructuredOutputsParams(choice=["yes", "no"]), "no", "maybe"),
    ):
        either = grammar_of(style, marked=True).choice(free, "prompt", several=True, form=form)
        assert allows(either, good, marked=True)
        assert not allows(either, bad, marked=True)
        assert allows(either, call(style, "weather", WRONG), marked=True)
        assert not allows(either, good + call(style, "weather", RIGHT), marked=True)


def test_what_is_not_to_be_guaranteed() -> None:
    free = [CallableTool("weather", CITY)]
    assert grammar_of(HERMES, marked=True).choice(free, "prompt", several=True) is None
    form = StructuredOutputsParams(json=CITY)
    own = StructuredOutputsParams(grammar='start: "x"')
    for style in (MessageStyle(), MessageStyle("pythonic")):
        grammar = grammar_of(style, marked=True)
        assert grammar.choice(TOOLS, "prompt", several=True) is None
        assert grammar.choice(TOOLS, "prompt", several=True, form=form) == form
    assert grammar_of(LLAMA, marked=True).choice(TOOLS, "prompt", several=True, form=form) == form
    assert grammar_of(HERMES, marked=True).choice(TOOLS, "prompt", several=True, form=own) == own


def test_names_may_hold_anything() -> None:
    odd = CallableTool('a"b\\c', CITY, strict=True)
    form = grammar_of(HERMES, marked=True).calls([odd], "prompt", several=False)
    said = json.dumps({"name": odd.name, "arguments": {"city": "Rome"}})
    assert allows(form, f"<tool_call>\n{said}\n</tool_call>", marked=True)

"""Thoughts, calls and what is said: however the text is cut, the same pieces."""

import json
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pllm.runtime.message.pieces import CallArguments, CallStart, Content, Piece, PieceReader, Reasoning, split_at
from pllm.runtime.message.style import CALL_STYLES, MessageStyle

TOOLS = frozenset({"f", "get_weather"})
HERMES, LLAMA, MISTRAL, PYTHONIC = (MessageStyle(style) for style in CALL_STYLES)
THINKER = MessageStyle("hermes", thinks=True)


def joined(pieces: list[Piece]) -> tuple[str, str, list[tuple[str, str]]]:
    """Thoughts, content, and each call's name and arguments."""
    thoughts = "".join(piece.text for piece in pieces if isinstance(piece, Reasoning))
    content = "".join(piece.text for piece in pieces if isinstance(piece, Content))
    starts = [piece for piece in pieces if isinstance(piece, CallStart)]
    assert [start.index for start in starts] == list(range(len(starts)))
    begun: set[int] = set()
    for piece in pieces:
        if isinstance(piece, CallStart):
            begun.add(piece.index)
        elif isinstance(piece, CallArguments):
            assert piece.index in begun, "arguments before their call"
    calls = [
        (start.name, "".join(p.text for p in pieces if isinstance(p, CallArguments) and p.index == start.index))
        for start in starts
    ]
    return thoughts, content, calls


def read(reader: PieceReader, *texts: str) -> tuple[str, str, list[tuple[str, str]]]:
    return joined([piece for text in texts for piece in reader.feed(text)] + reader.finish())


def hermes(text: str) -> str:
    return f"<tool_call>\n{text}\n</tool_call>"


CALL = '{"name": "f", "arguments": {"a": "}{\\"", "b": [1, {"c": null}]}}'
ARGUMENTS = '{"a": "}{\\"", "b": [1, {"c": null}]}'

CASES: list[tuple[MessageStyle, str, str, list[tuple[str, str]]]] = [
    (HERMES, "just text", "just text", []),
    (HERMES, "text \n ends in space ", "text \n ends in space ", []),
    (HERMES, hermes(CALL), "", [("f", ARGUMENTS)]),
    (HERMES, "Let me see.\n" + hermes(CALL), "Let me see.", [("f", ARGUMENTS)]),
    (HERMES, f"{hermes(CALL)}\n{hermes(CALL)}", "", [("f", ARGUMENTS)] * 2),
    (HERMES, f"<tool_call>{CALL}<tool_call>{CALL}", "", [("f", ARGUMENTS)] * 2),
    (HERMES, hermes(CALL) + "after", "after", [("f", ARGUMENTS)]),
    (HERMES, hermes('{"arguments": {"a": 1}, "name": "f"}'), "", [("f", '{"a": 1}')]),
    (HERMES, hermes('{"id": 7, "name": "f"}'), "", [("f", "{}")]),
    (HERMES, hermes('{"name": "f", "arguments": null}'), "", [("f", "{}")]),
    (HERMES, hermes('{"name": "f", "arguments": "{\\"a\\": 1}"}'), "", [("f", '{"a": 1}')]),
    (HERMES, '<tool_call>\n{"name": "f", "arguments": {"a": "unfin', "", [("f", '{"a": "unfin')]),
    (HERMES, '<tool_call>\n{"na', '<tool_call>\n{"na', []),
    (HERMES, "x <tool_call>\nnot json</tool_call> y", "x <tool_call>\nnot json</tool_call> y", []),
    (HERMES, "a < b <tool", "a < b <tool", []),
    (HERMES, '<tool_call>{"name": "f", "arguments": {} oops}</tool_call>then', "then", [("f", "{}")]),
    (HERMES, hermes('{"name": 3, "arguments": {}}'), hermes('{"name": 3, "arguments": {}}'), []),
    (LLAMA, '{"name": "f", "parameters": {"a": 1}}', "", [("f", '{"a": 1}')]),
    (LLAMA, ' <|python_tag|>{"name": "f", "parameters": {}}', "", [("f", "{}")]),
    (LLAMA, '{"type": "function", "name": "f", "parameters": {"a": 1}}', "", [("f", '{"a": 1}')]),
    (LLAMA, '{"name": "f", "parameters": {}}; {"name": "f", "parameters": {"b": 2}}', "",
     [("f", "{}"), ("f", '{"b": 2}')]),
    (LLAMA, '[{"name": "f", "arguments": {}}, {"name": "f", "arguments": {}}]\n', "", [("f", "{}")] * 2),
    (LLAMA, '{"name": "Ann", "age": 3}', '{"name": "Ann", "age": 3}', []),
    (LLAMA, '{"name": "f"}', '{"name": "f"}', []),
    (LLAMA, '{"answer": 3} and more', '{"answer": 3} and more', []),
    (LLAMA, "[1, 2]", "[1, 2]", []),
    (LLAMA, "hello", "hello", []),
    (LLAMA, "", "", []),
    (MISTRAL, "text", "text", []),
    (MISTRAL, '[TOOL_CALLS][{"name": "f", "arguments": {"a": 1}}]', "", [("f", '{"a": 1}')]),
    (MISTRAL, 'so [TOOL_CALLS] [{"name": "f", "arguments": {}}, {"name": "g", "arguments": {}}]', "so ",
     [("f", "{}"), ("g", "{}")]),
    (MISTRAL, '[TOOL_CALLS]f[ARGS]{"a": 1}', "", [("f", '{"a": 1}')]),
    (MISTRAL, '[TOOL_CALLS]f{"a": 1}[TOOL_CALLS]g[CALL_ID]abc[ARGS]{}', "", [("f", '{"a": 1}'), ("g", "{}")]),
    (MISTRAL, "[TOOL_CALLS]no call", "[TOOL_CALLS]no call", []),
    (MISTRAL, "[TOOL", "[TOOL", []),
    (PYTHONIC, '[f(a=1, b="x, )", c=[1, {"k": None}], d=True)]', "",
     [("f", '{"a": 1, "b": "x, )", "c": [1, {"k": null}], "d": true}')]),
    (PYTHONIC, "[f(), get_weather(city='Köln')]", "", [("f", "{}"), ("get_weather", '{"city": "Köln"}')]),
    (PYTHONIC, "<|python_start|>[f(a=-1.5,)]<|python_end|>", "", [("f", '{"a": -1.5}')]),
    (PYTHONIC, "[1, 2, 3]", "[1, 2, 3]", []),
    (PYTHONIC, "[unknown(a=1)]", "[unknown(a=1)]", []),
    (PYTHONIC, "[f(a=open('x'))]", "[f(a=open('x'))]", []),
    (PYTHONIC, "[f(1)]", "[f(1)]", []),
    (PYTHONIC, "[f(a=1, b=oops)]", "", [("f", '{"a": 1}')]),
    (PYTHONIC, "no list", "no list", []),
    (PYTHONIC, "[f(a=1", "[f(a=1", []),
]  # fmt: skip


@pytest.mark.parametrize(("style", "text", "content", "calls"), CASES)
def test_a_message_whole_and_a_character_at_a_time(style: MessageStyle, text: str, content: str, calls: list) -> None:
    expected = ("", content, calls)
    assert read(style.reader("", TOOLS), text) == expected
    assert read(style.reader("", TOOLS), *text) == expected


@pytest.mark.parametrize(
    ("prompt", "text", "thoughts", "content"),
    [
        ("", "<think>\nHm.\n</think>\n\nYes.", "Hm.", "Yes."),
        ("", " \n<think>a\n\nb</think>c", "a\n\nb", "c"),
        ("", "Yes.", "", "Yes."),
        ("", "<thin", "", "<thin"),
        ("", "<think>never ends ", "never ends", ""),
        ("", "<think>\n\n</think>\n\nYes.", "", "Yes."),
        ("", "Yes <think>no</think>", "", "Yes <think>no</think>"),
        ("...<think>\n", "Hm.\n</think>\nYes.", "Hm.", "Yes."),
        ("...<think>\n", "<think>Hm.</think>Yes.", "Hm.", "Yes."),
        ("...<think>\n", "\n", "", ""),
        ("...<think>\n\n</think>\n\n", "Yes.", "", "Yes."),
        ("", "<think>x</think> \n", "x", ""),
    ],
)
def test_thoughts(prompt: str, text: str, thoughts: str, content: str) -> None:
    for texts in ([text], list(text)):
        assert read(THINKER.reader(prompt, TOOLS), *texts) == (thoughts, content, [])
        assert read(MessageStyle(thinks=True).reader(prompt, frozenset()), *texts) == (thoughts, content, [])


def test_a_call_after_thoughts() -> None:
    said = read(THINKER.reader("", TOOLS), "<think>I need f.</think>\n\n" + hermes(CALL))
    assert said == ("I need f.", "", [("f", ARGUMENTS)])


def test_without_tools_nothing_is_a_call() -> None:
    for style in (HERMES, LLAMA, MISTRAL, PYTHONIC, MessageStyle()):
        assert read(style.reader("", frozenset()), hermes(CALL)) == ("", hermes(CALL), [])


def test_one_call_only() -> None:
    text = f"{hermes(CALL)}\n{hermes(CALL)}"
    assert read(HERMES.reader("", TOOLS, parallel=False), *text) == ("", "", [("f", ARGUMENTS)])


def test_forced_calls_of_styles_without_a_grammar_of_their_own() -> None:
    for style in (MessageStyle(), PYTHONIC):
        text = '{"name": "f", "parameters": {"a": 1}}'
        assert read(style.reader("", TOOLS, forced=True), text) == ("", "", [("f", '{"a": 1}')])


def test_arguments_come_as_they_are_written() -> None:
    reader = HERMES.reader("", TOOLS)
    assert reader.feed('<tool_call>\n{"name": "f", "arguments": {"city": "Pa') == [
        CallStart(0, "f"),
        CallArguments(0, '{"city": "Pa'),
    ]
    assert reader.feed("ris") == [CallArguments(0, "ris")]
    assert reader.feed('"}}\n</tool_call>') == [CallArguments(0, '"}')]
    python = PYTHONIC.reader("", TOOLS)
    assert python.feed("[f(a=1, b=") == [CallStart(0, "f"), CallArguments(0, '{"a": 1')]


SCRAPS = st.lists(
    st.sampled_from(
        [
            *("<tool_call>", "</tool_call>", "<think>", "</think>", "[TOOL_CALLS]", "[ARGS]", "<|python_tag|>"),
            *("<|python_start|>", '{"name": "f", "arguments": ', '{"a": 1}', '"}', "{", "}", "[", "]", "f(", "a=1"),
            *(")", ",", ";", ":", '"', "'", "\\", " ", "\n", "f", '"name"', '"arguments"', "null", "3"),
            *("é😀", "<", "tool"),
            *(CALL, hermes(CALL), "[f(a='x')]", "[f(", '"parameters": {'),
        ]
    ),
    max_size=14,
).map("".join)  # fmt: skip


@settings(max_examples=400, deadline=None)
@given(
    text=SCRAPS | st.text(max_size=30),
    cuts=st.lists(st.integers(0, 200), max_size=6),
    calls=st.sampled_from([*CALL_STYLES, None]),
    thinks=st.booleans(),
    prompt=st.sampled_from(["", "<think>\n"]),
    tools=st.sampled_from([TOOLS, frozenset()]),
    forced=st.booleans(),
)
def test_any_cut_gives_the_same(text, cuts, calls, thinks, prompt, tools, forced) -> None:
    def reader() -> PieceReader:
        return MessageStyle(calls, thinks).reader(prompt, tools, forced=forced)

    places = sorted({0, len(text), *(min(cut, len(text)) for cut in cuts)})
    whole = read(reader(), text)
    assert read(reader(), *(text[a:b] for a, b in pairwise(places))) == whole
    assert read(reader(), *text) == whole


@settings(max_examples=200, deadline=None)
@given(
    arguments=st.dictionaries(
        st.text(max_size=5),
        st.recursive(
            st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
            lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
            max_leaves=6,
        ),
        max_size=4,
    ),
    ascii_only=st.booleans(),
)
def test_any_arguments_come_through(arguments: dict, ascii_only: bool) -> None:
    written = json.dumps(arguments, ensure_ascii=ascii_only)
    call = f'{{"name": "f", "arguments": {written}}}'
    for style, text in ((HERMES, hermes(call)), (LLAMA, call), (MISTRAL, f"[TOOL_CALLS]f[ARGS]{written}")):
        assert read(style.reader("", TOOLS), *text) == ("", "", [("f", written)])


@given(st.text(max_size=40))
def test_text_without_signs_is_said_as_it_is(text: str) -> None:
    assert read(HERMES.reader("", TOOLS), *text.replace("<", "")) == ("", text.replace("<", ""), [])


def test_splitting_at_markers() -> None:
    assert split_at("a<b>c", ("<b>", "<bc>")) == ("a", "<b>", "c")
    assert split_at("a<b", ("<b>", "<bc>")) == ("a", "", "<b")
    assert split_at("a<b<", ("<b>",)) == ("a<b", "", "<")
    assert split_at("", ("<b>",)) == ("", "", "")


@pytest.mark.parametrize(
    ("template", "style"),
    [
        ("{{ '<tool_call>' }}", MessageStyle("hermes")),
        ("<tool_call> </think>", MessageStyle("hermes", thinks=True)),
        ("[TOOL_CALLS]", MessageStyle("mistral")),
        ("[TOOL_CALLS] [ARGS]", MessageStyle("mistral", names_calls=True)),
        ("<|python_tag|>", MessageStyle("llama3_json")),
        ('Respond in the format {"name": function name, "parameters": ...}', MessageStyle("llama3_json")),
        ("[func_name1(params_name1=params_value1)]", MessageStyle("pythonic")),
        ("<|im_start|>", MessageStyle()),
    ],
)
def test_the_style_is_read_off_the_template(template: str, style: MessageStyle) -> None:
    assert MessageStyle.of(template) == style

"""Chat templates render as transformers renders them, and cannot do harm."""

import time
from datetime import datetime
from pathlib import Path

import pytest

from pllm.runtime.chat_template import ChatTemplate
from pllm.runtime.errors import ArtifactError, RequestError

SPECIAL = {"bos_token": "<s>", "eos_token": "</s>"}

TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "weather",
            "description": "Wetter & <Straße> \u4f60",
            "parameters": {"type": "object", "properties": {"place": {"type": "string"}}, "required": ["place"]},
        },
    }
]

MESSAGES = [
    {"role": "system", "content": "Be brief.\n"},
    {"role": "user", "content": "  Wie heiß <ist> es in \u6771\u4eac? \U0001f600"},
    {
        "role": "assistant",
        "content": None,
        "reasoning_content": "think \u2026",
        "tool_calls": [
            {"type": "function", "id": "x", "function": {"name": "weather", "arguments": {"place": "\u6771\u4eac"}}}
        ],
    },
    {"role": "tool", "content": "31", "tool_call_id": "x"},
    {"role": "assistant", "content": "31 °C</think>  "},
    {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]},
]

TEMPLATES = {
    path.stem: path.read_text(encoding="utf-8") for path in (Path(__file__).parent / "templates").glob("*.jinja")
}


@pytest.fixture(scope="module")
def theirs():
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer(models.WordLevel({"<s>": 0, "</s>": 1}, unk_token="<s>"))
    return PreTrainedTokenizerFast(tokenizer_object=backend, **SPECIAL)


@pytest.fixture(scope="module")
def their_messages(theirs):
    """As a client sends them. Before a template sees them, later transformers leave out what is None and give reasoning
    the names that templates look for, as we do; 5.17 does not, and gets what they make of these messages."""
    seen = theirs.apply_chat_template(
        [{"role": "user", "content": None}], chat_template="{{ messages[0].content is defined }}", tokenize=False
    )
    if seen == "False":
        return MESSAGES
    given = [{key: value for key, value in message.items() if value is not None} for message in MESSAGES]
    return [
        {**message, "thinking": message["reasoning_content"]} if "reasoning_content" in message else message
        for message in given
    ]


@pytest.mark.parametrize("name", TEMPLATES)
@pytest.mark.parametrize("tools", [None, TOOLS], ids=["no tools", "tools"])
@pytest.mark.parametrize("add_generation_prompt", [False, True])
def test_renders_as_transformers(name: str, tools, add_generation_prompt: bool, theirs, their_messages) -> None:
    source = TEMPLATES[name]
    for arguments in ({}, {"enable_thinking": False}, {"documents": [{"title": "t", "text": "x"}]}):
        expected = theirs.apply_chat_template(
            their_messages,
            tools=tools,
            chat_template=source,
            add_generation_prompt=add_generation_prompt,
            tokenize=False,
            **arguments,
        )
        ours = ChatTemplate({"default": source}, SPECIAL)
        assert ours.render(MESSAGES, tools, add_generation_prompt=add_generation_prompt, **arguments) == expected
        assert expected, "the template writes something"


@pytest.mark.parametrize(
    "last, field",
    [
        ({"role": "assistant", "content": "The answer "}, True),
        ({"role": "assistant", "content": "  padded  "}, True),
        ({"role": "assistant", "content": [{"type": "text", "text": "from parts"}]}, True),
        ({"role": "assistant", "content": "", "reasoning_content": "so"}, "reasoning_content"),
    ],
)
@pytest.mark.parametrize("name", ["plain_lines", "parts", "trimming"])
def test_continues_the_last_message_as_transformers(last, field, name: str, theirs) -> None:
    source = TEMPLATES[name]
    messages = [MESSAGES[0], last]
    try:
        expected = theirs.apply_chat_template(
            messages, chat_template=source, continue_final_message=field, tokenize=False
        )
    except ValueError:
        with pytest.raises(RequestError):
            ChatTemplate({"default": source}, SPECIAL).render(messages, continue_final_message=field)
    else:
        assert ChatTemplate({"default": source}, SPECIAL).render(messages, continue_final_message=field) == expected
    assert "CONTINUE" not in str(last), "the caller's message is not touched"


def render(source: str, **limits: float) -> str:
    return ChatTemplate({"default": source}, SPECIAL, **limits).render([{"role": "user", "content": "hi"}])


def test_the_time_is_local() -> None:
    assert render("{{ strftime_now('%Y-%m') }}") == datetime.now().strftime("%Y-%m")


def test_what_the_template_says_is_the_error() -> None:
    with pytest.raises(RequestError, match=r"^Only user and assistant!$") as caught:
        render("{{ raise_exception('Only user and assistant!') }}")
    assert caught.value.param == "messages"


@pytest.mark.parametrize(
    "source", ["{{ messages[0].nothing.more }}", "{{ 1 // 0 }}", "{{ messages[0].content + 1 }}", "{{ [1]['a']() }}"]
)
def test_a_failing_template_is_the_requests_error(source: str) -> None:
    with pytest.raises(RequestError, match="The chat template fails on this conversation"):
        render(source)


def test_a_broken_template_names_its_line() -> None:
    with pytest.raises(ArtifactError, match="broken at line 2"):
        render("\n{% for %}")


ESCAPES = [
    "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "{{ messages.__class__ }}",
    "{{ messages['__class__'] }}",
    "{{ messages | attr('__class__') }}",
    "{{ raise_exception.__globals__ }}",
    "{{ strftime_now.__globals__['os'].system('true') }}",
    "{{ self.__init__.__globals__ }}",
    "{{ cycler.__init__.__globals__.os }}",
    "{{ namespace.__init__ }}",
    "{{ '{0.__class__}'.format(messages) }}",
    "{{ messages | map(attribute='__class__') | list }}",
    "{{ dict.__init__.__globals__ }}",
    "{% set ns = namespace(__class__=1) %}",
    "{{ messages.append(1) }}",
    "{{ messages[0].update({'role': 'x'}) }}",
]


@pytest.mark.parametrize("source", ESCAPES)
def test_no_way_out_of_the_sandbox(source: str) -> None:
    try:
        text = render(source)
    except RequestError:
        return
    assert text in {"", "[]", "[Undefined]"}, "an unsafe name is as good as absent"


@pytest.mark.parametrize(
    "source",
    [
        source
        for source in ESCAPES
        if "__" in source and "attr" not in source and "format" not in source and "set" not in source
    ],
)
def test_a_template_that_reaches_for_insides_is_refused_before_it_runs(source: str) -> None:
    with pytest.raises(ArtifactError, match="reaches for '__"):
        ChatTemplate({"default": source}, SPECIAL).check()


def test_honest_templates_pass_the_check() -> None:
    ChatTemplate(TEMPLATES, SPECIAL).check()


BOMBS = {
    "nested loops": "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
    "a loop whose filter takes nothing": (
        "{% for a in range(9999) %}{% for b in range(99999) if b < 0 %}{% endfor %}{% endfor %}"
    ),
    "exponential macros": "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(60) }}",
    "endless recursion": "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
    **{
        f"doubling by {{{{ {twice} }}}}": (
            f"{{% set ns = namespace(s={start}) %}}{{% for i in range(60) %}}{{% set ns.s = {twice} %}}{{% endfor %}}"
        )
        for start, twice in (
            ("'xx'", "ns.s ~ ns.s"),
            ("'xx'", "ns.s + ns.s"),
            ("'xx'", "[ns.s, ns.s] | join"),
            ("'xx'", "'{0}{0}'.format(ns.s)"),
            ("[1]", "ns.s + ns.s"),
        )
    },
    "repetition": "{{ 'x' * 10000000000 }}",
    "repeated list": "{{ [1] * 10000000000 }}",
    "wide centre": "{{ 'x' | center(10000000000) }}",
    "wide ljust": "{{ 'x'.ljust(10000000000) }}",
    "wide zfill": "{{ 'x'.zfill(10000000000) }}",
    "wide format": "{{ '{:>10000000000}'.format(1) }}",
    "wide per cent": "{{ '%10000000000d' % 1 }}",
    "wide star": "{{ '%*d' % (10000000000, 1) }}",
    "wide format filter": "{{ '%10000000000d' | format(1) }}",
    "replace": "{{ ('x' * 100000).replace('x', 'y' * 100000) }}",
    "replace filter": "{{ ('x' * 100000) | replace('x', 'y' * 100000) }}",
    "join": "{{ ('x' * 1000000).join(range(100000) | map('string') | list) }}",
    "indent": "{{ 'x\\n' * 100000 | int | indent(1000000) }}{{ ('x\\n' * 100000) | indent(1000000) }}",
    "big power": "{{ 9 ** (9 ** 9) }}",
    "big product": "{% set ns = namespace(n=9) %}{% for i in range(60) %}{% set ns.n = ns.n * ns.n %}{% endfor %}",
    "wide json": "{{ [1, [2]] | tojson(indent=10000000000) }}",
    "much output": "{% for i in range(99999) %}{{ 'x' * 1000 }}{% endfor %}",
    "a block that is set": (
        "{% set x %}{% for i in range(99999) %}{{ 'x' * 1000000 }}{% endfor %}{% endset %}{{ x | length }}"
    ),
    "the same value written often": (
        "{% set s = 'x' * 4000000 %}{% set x %}{% for i in range(99999) %}{{ s }}{% endfor %}{% endset %}"
    ),
    "a macro's output": (
        "{% macro f() %}{% for i in range(99999) %}{{ 'x' * 1000000 }}{% endfor %}{% endmacro %}{% set y = f() %}"
    ),
    "values kept": (
        "{% set ns = namespace(l=[]) %}{% for i in range(9999) %}{% set ns.l = ns.l + ['x' * 4000000] %}{% endfor %}"
    ),
    "its own text": "{% set x %}{% for i in range(99999) %}" + "x" * 10000 + "{% endfor %}{% endset %}",
    "deep expression": "{{ " + "(" * 3000 + "1" + ")" * 3000 + " }}",
}


@pytest.mark.parametrize("name", BOMBS)
def test_a_template_that_would_take_for_ever_is_stopped(name: str) -> None:
    start = time.thread_time()
    with pytest.raises((RequestError, ArtifactError)) as caught:
        render(BOMBS[name], max_seconds=0.2, max_characters=1 << 22)
    assert "MemoryError" not in str(caught.value), "stopped before the memory was asked for"
    assert time.thread_time() - start < 20, "liveness: a bomb would take hours"


def test_the_limits_say_what_they_are() -> None:
    with pytest.raises(RequestError, match=r"more than 0\.1 s; it may loop for ever") as caught:
        render(BOMBS["nested loops"], max_seconds=0.1)
    assert caught.value.code == "chat_template_limit"
    with pytest.raises(RequestError, match=r"1000 is the most|more than 1000 characters"):
        render("{% for i in range(99) %}{{ 'x' * 99 }}{% endfor %}", max_characters=1000)


def test_a_limit_is_of_one_rendering() -> None:
    """The budget begins anew each time: many fair renderings do not add up."""
    template = ChatTemplate({"default": "{% for i in range(20000) %}{% endfor %}x"}, SPECIAL, max_seconds=1.0)
    assert [template.render([{"role": "user"}]) for _ in range(100)] == ["x"] * 100


def test_named_templates(theirs) -> None:
    sources = {"default": "plain {{ messages | length }}", "tool_use": "tools {{ tools | length }}"}
    template = ChatTemplate(sources, SPECIAL)
    theirs.chat_template = sources
    for tools in (None, TOOLS):
        assert template.render(MESSAGES, tools) == theirs.apply_chat_template(MESSAGES, tools=tools, tokenize=False)
    with pytest.raises(RequestError, match="templates are rag, tool_use"):
        ChatTemplate({"rag": "", "tool_use": ""}, SPECIAL).render(MESSAGES)


@pytest.mark.parametrize(
    "source, wants",
    [
        (TEMPLATES["parts"], True),
        (TEMPLATES["chatml"], False),
        (TEMPLATES["plain_lines"], False),
        (
            "{% for m in messages %}{% set c = m['content'] %}{% for p in c | list %}{% endfor %}{% endfor %}",
            True,
        ),
        ("{% for m in messages %}{% for line in m.content.split('x') %}{{ line }}{% endfor %}{% endfor %}", False),
        ("{% for m in messages %}{% for part in m.content[1:] %}{{ part }}{% endfor %}{% endfor %}", True),
    ],
)
def test_which_templates_want_content_parts(source: str, wants: bool) -> None:
    assert ChatTemplate({"default": source}, SPECIAL).wants_content_parts(with_tools=False) is wants


@pytest.mark.parametrize("messages", [[], ["hello"], [[]], [None]])
def test_conversations_that_are_none(messages) -> None:
    with pytest.raises(RequestError) as caught:
        ChatTemplate({"default": "x"}, SPECIAL).render(messages)
    assert caught.value.param == "messages"


def test_objects_are_reduced_to_plain_data() -> None:
    class Model:
        def model_dump(self) -> dict[str, str]:
            return {"role": "user", "content": "dumped"}

    class Text(str):
        def danger(self) -> str:
            return "reached"

    source = (
        "{% for m in messages %}{{ m.content }}{{ m.content.danger() if m.content.danger is defined }};{% endfor %}"
    )
    template = ChatTemplate({"default": source}, SPECIAL)
    assert template.render([Model(), {"content": Text("t")}, {"content": object()}]) == "dumped;t;<object>;"

"""The shipped model's tokenizer and template, against transformers."""

from pathlib import Path

import pytest

from pllm.runtime.detokenizer import IncrementalDetokenizer
from pllm.runtime.tokenizer import Tokenizer

QUICKSTART = Path(__file__).parents[2] / "recipes" / "quickstart"
TOOL = {
    "type": "function",
    "function": {"name": "add", "parameters": {"type": "object", "properties": {"a": {"type": "integer"}}}},
}
CONVERSATIONS = [
    [{"role": "user", "content": "What is 17 + 25?"}],
    [
        {"role": "system", "content": "你是一个助手。"},
        {"role": "user", "content": "拼写 😀"},
        {"role": "assistant", "content": "42"},
    ],
    [
        {"role": "user", "content": "add"},
        {
            "role": "assistant",
            "content": "",
            "tool_calls": [{"type": "function", "function": {"name": "add", "arguments": {"a": 1}}}],
        },
        {"role": "tool", "content": "2"},
    ],
]


@pytest.fixture(scope="module")
def both():
    from transformers import AutoTokenizer

    return Tokenizer.open(QUICKSTART), AutoTokenizer.from_pretrained(QUICKSTART)


@pytest.mark.parametrize("messages", CONVERSATIONS)
@pytest.mark.parametrize("tools", [None, [TOOL]])
def test_conversations(both, messages, tools) -> None:
    ours, theirs = both
    prompt = ours.apply_chat_template(messages, tools, add_generation_prompt=True)
    assert prompt == theirs.apply_chat_template(messages, tools=tools, add_generation_prompt=True)["input_ids"]


@pytest.mark.parametrize(
    "text", ["What is 17 + 25?", "今天天气很好、😀👩‍👩‍👧", "  a\n\n\tb  ", "<|im_start|>user\nx<|im_end|>"]
)
def test_text(both, text: str) -> None:
    ours, theirs = both
    ids = theirs.encode(text)
    assert ours.encode(text) == ids
    for skip in (True, False):
        detokenizer = IncrementalDetokenizer(ours, skip_special_tokens=skip)
        streamed = "".join(detokenizer.feed([token_id]) for token_id in ids) + detokenizer.flush()
        assert streamed == ours.decode(ids, skip) == theirs.decode(ids, skip_special_tokens=skip)

"""The tokenizer: byte-level BPE whose merges are learnt from the training documents."""

from collections.abc import Iterable
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from conversations.documents import conversation, draw_document
from conversations.markup import CHAT_TEMPLATE, END_OF_TEXT, IM_END, IM_START, TOOL_CALL, TOOL_CALL_END
from conversations.skills import SKILLS
from conversations.source import Source
from conversations.tools import tool_answer

__all__ = ["MAX_POSITIONS", "alphabetic_pieces", "build_tokenizer", "check_rendering", "token_id"]

VOCABULARY = 1280
MAX_POSITIONS = 2048
PRE_TOKENIZER_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
"""Words with an optional leading mark, single digits, punctuation, line ends, blanks."""


def corpus(seed: str, documents: int) -> Iterable[str]:
    """Text from which the tokenizer learns its merges: training documents without the control tokens."""
    source = Source(f"{seed}/tokenizer")
    for index in range(documents):
        text = "".join(segment.text for segment in draw_document(source, long=index % 4 == 0).segments)
        for control in (IM_START, IM_END, END_OF_TEXT, TOOL_CALL, TOOL_CALL_END):
            text = text.replace(control, "\n")
        yield text


def build_tokenizer(seed: str) -> PreTrainedTokenizerFast:
    """Byte-level BPE with one token per digit and all 256 bytes, so that every text survives a round trip."""
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(PRE_TOKENIZER_PATTERN), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    core.decoder = decoders.ByteLevel()
    control = [END_OF_TEXT, IM_START, IM_END]
    markers = [TOOL_CALL, TOOL_CALL_END]
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY - len(control) - len(markers),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    core.train_from_iterator(corpus(seed, 12_000), trainer)
    core.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in control])
    core.add_tokens([AddedToken(token, special=False, normalized=False) for token in markers])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core,
        eos_token=IM_END,
        pad_token=END_OF_TEXT,
        model_max_length=MAX_POSITIONS,
        clean_up_tokenization_spaces=False,
    )
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


def token_id(tokenizer: PreTrainedTokenizerFast, token: str) -> int:
    """The id of one token of the vocabulary."""
    return int(tokenizer.get_vocab()[token])


def alphabetic_pieces(tokenizer: PreTrainedTokenizerFast) -> list[str]:
    """The lower-case letter sequences that are tokens, with or without a leading blank."""
    pieces = {token.removeprefix("Ġ") for token in tokenizer.get_vocab()}
    return sorted(p for p in pieces if p.isascii() and p.isalpha() and p.islower() and len(p) <= 8)


def check_rendering(tokenizer: Any, seed: str) -> None:
    """Makes sure that training documents read exactly as the chat template renders them, and that text survives."""
    source = Source(f"{seed}/check")
    for index in range(200):
        exchange = tool_answer(source) if index % 2 else source.pick(list(SKILLS.values()))(source)
        rendered = tokenizer.apply_chat_template(exchange.messages(), tools=exchange.tools or None, tokenize=False)
        if not exchange.tools:
            document = conversation(Source("no system"), [exchange])
            ours = "".join(segment.text for segment in document.segments)
            ours = IM_START + "user" + ours.split(IM_START + "user", 1)[1]
            answer = {"role": "assistant", "content": exchange.expected()}
            theirs = tokenizer.apply_chat_template([*exchange.messages(), answer], tokenize=False)
            assert ours == theirs, (ours, theirs)
        assert tokenizer.decode(tokenizer.encode(rendered)) == rendered
    for text in ("你好,世界 👋🏽", "e\u0301 \u00e9", " \t x\n\n  y ", "12345", "\x00\x7f"):
        assert tokenizer.decode(tokenizer.encode(text)) == text
    digits = tokenizer.encode("1234567890")
    assert len(digits) == 10

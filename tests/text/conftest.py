"""Tokenizers of every kind that language models use, small and made on the spot."""

import json
import sys
import types
from collections.abc import Sequence
from pathlib import Path

import pytest
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers
from tokenizers.trainers import BpeTrainer

from .fake_model import FakeCore

SPECIAL = ["<s>", "</s>", "<|im_start|>", "<|im_end|>"]
CORPUS = [
    "The quick brown fox jumps over the lazy dog. It doesn't matter, does it?",
    "你好、世界。今天天气很好。 naïve café über straße",
    "emoji 😀 👩‍👩‍👧 🎉 and 1234567890 + 42 = 7",
    "  indented\n\ttext\n\n  with   spaces ",
] * 4


def byte_level() -> Tokenizer:
    """Like GPT-2, Llama 3, Qwen."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator(CORPUS, BpeTrainer(vocab_size=330, initial_alphabet=alphabet, show_progress=False))
    tokenizer.add_special_tokens(SPECIAL)
    tokenizer.add_tokens(["<tool call>", "café", AddedToken("<think>", normalized=False)])
    return tokenizer


def byte_fallback(*decoder_steps: object) -> Tokenizer:
    """Like Llama 2, Mistral, Gemma: words marked by U+2581, and bytes for what the vocabulary lacks."""
    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    pieces += [
        "▁",
        "▁▁",
        "▁The",
        "▁the",
        "▁a",
        "T",
        "h",
        "e",
        "a",
        "b",
        "c",
        ".",
        ",",
        "'",
        "s",
        "▁world",
        "ld",
        "▁你好",
        "é",
    ]
    model = models.BPE(
        {piece: i for i, piece in enumerate(pieces)}, [], unk_token="<unk>", byte_fallback=True, fuse_unk=True
    )
    tokenizer = Tokenizer(model)
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), *decoder_steps]
    )
    tokenizer.add_special_tokens(["<s>", "</s>", "<|im_end|>"])
    tokenizer.add_tokens(["<b>"])
    return tokenizer


def metaspace(prepend_scheme: str) -> Tokenizer:
    """SentencePiece unigram, as T5."""
    pieces = [
        ("<unk>", 0.0),
        ("▁", -2.0),
        ("▁the", -2.5),
        ("▁a", -2.6),
        ("a▁b", -2.7),
        *((c, -4.0) for c in "abcdeht.é你"),
    ]
    tokenizer = Tokenizer(models.Unigram(pieces, unk_id=0))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=prepend_scheme)
    tokenizer.decoder = decoders.Metaspace(prepend_scheme=prepend_scheme)
    tokenizer.add_special_tokens(SPECIAL)
    return tokenizer


def word_piece(*, cleanup: bool) -> Tokenizer:
    """As BERT."""
    pieces = [
        "[UNK]",
        "the",
        "a",
        "##a",
        "##b",
        "b",
        ".",
        ",",
        "'",
        "s",
        "##s",
        "t",
        "n",
        "##n't",
        "do",
        "not",
        "é",
        "你",
        "?",
        "!",
        "do not",
    ]
    tokenizer = Tokenizer(models.WordPiece({piece: i for i, piece in enumerate(pieces)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.decoder = decoders.WordPiece(cleanup=cleanup)
    tokenizer.add_special_tokens(["[CLS]", "[SEP]"])
    return tokenizer


def end_of_word() -> Tokenizer:
    """The original BPE: a word's last piece is marked."""
    pieces = ["<unk>", "a", "b", "a</w>", "b</w>", "c</w>d</w>", "é</w>"]
    tokenizer = Tokenizer(
        models.BPE({piece: i for i, piece in enumerate(pieces)}, [], unk_token="<unk>", end_of_word_suffix="</w>")
    )
    tokenizer.decoder = decoders.BPEDecoder()
    tokenizer.add_special_tokens(SPECIAL)
    return tokenizer


def word_level() -> Tokenizer:
    """No decoder: tokens joined with spaces."""
    tokenizer = Tokenizer(models.WordLevel({"<unk>": 0, "a": 1, "b c": 2, "é": 3, ".": 4}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.add_special_tokens(SPECIAL)
    return tokenizer


KINDS = {
    "byte level": (byte_level, {}),
    "byte fallback, stripped": (lambda: byte_fallback(decoders.Strip(" ", 1, 0)), {}),
    "byte fallback": (byte_fallback, {}),
    "byte fallback, stripped twice": (lambda: byte_fallback(decoders.Strip(" ", 2, 0)), {}),
    "regex replace": (
        lambda: _with_decoder(
            byte_fallback(), decoders.Sequence([decoders.Replace(Regex("▁+"), " "), decoders.ByteFallback()])
        ),
        {},
    ),
    "strip each piece": (
        lambda: _with_decoder(
            byte_fallback(), decoders.Sequence([decoders.Replace("▁", " "), decoders.Strip(" ", 1, 0)])
        ),
        {},
    ),
    "byte level, replaced": (
        lambda: _with_decoder(
            byte_level(),
            decoders.Sequence([decoders.ByteLevel(), decoders.Replace("e", "E"), decoders.Strip("T", 1, 0)]),
        ),
        {},
    ),
    "metaspace": (lambda: metaspace("always"), {}),
    "metaspace, first": (lambda: metaspace("first"), {}),
    "metaspace, never": (lambda: metaspace("never"), {}),
    "metaspace, cleaned up": (lambda: metaspace("first"), {"clean_up_tokenization_spaces": True}),
    "word piece": (lambda: word_piece(cleanup=False), {}),
    "word piece, cleaned": (lambda: word_piece(cleanup=True), {}),
    "word piece, cleaned up": (lambda: word_piece(cleanup=False), {"clean_up_tokenization_spaces": True}),
    "end of word": (end_of_word, {}),
    "word level": (word_level, {}),
    "word level, cleaned up": (word_level, {"clean_up_tokenization_spaces": True}),
}


def _with_decoder(tokenizer: Tokenizer, decoder: object) -> Tokenizer:
    tokenizer.decoder = decoder
    return tokenizer


@pytest.fixture
def tokenizer_directory(tmp_path: Path):
    """Writes a tokenizer as a checkpoint holds it: call with a backend and the contents of tokenizer_config.json."""

    def write(backend: Tokenizer, config: dict[str, object] | None = None, **files: object) -> Path:
        backend.save(str(tmp_path / "tokenizer.json"))
        (tmp_path / "tokenizer_config.json").write_text(json.dumps(config or {}), encoding="utf-8")
        for name, content in files.items():
            text = content if isinstance(content, str) else json.dumps(content)
            (tmp_path / name.replace("__", ".")).write_text(text, encoding="utf-8")
        return tmp_path

    return write


@pytest.fixture
def artifact(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An artifact directory with a tokenizer, opened by `fake_model.FakeCore`, whose model repeats its prompt."""
    directory = tmp_path / "artifact"
    (directory / "tokenizer").mkdir(parents=True)
    byte_level().save(str(directory / "tokenizer" / "tokenizer.json"))
    config = {
        "eos_token": "<|im_end|>",
        "chat_template": "{% for m in messages %}<|im_start|>{{ m.role }}:{{ m.content }}<|im_end|>{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>{% endif %}",
    }
    (directory / "tokenizer" / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
    (directory / "generation.json").write_text(
        json.dumps({"temperature": 0.0, "eos_token_id": [331]}), encoding="utf-8"
    )
    (directory / "manifest.json").write_text("{}", encoding="utf-8")
    monkeypatch.setattr(FakeCore, "next_token", staticmethod(echo), raising=False)
    monkeypatch.setattr(FakeCore, "config", {})
    module = types.ModuleType("pllm.runtime.engine_core")
    module.EngineCore = FakeCore  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "pllm.runtime.engine_core", module)
    return directory


def echo(prompt: Sequence[int], output: Sequence[int], seed: int) -> int:
    """The prompt over again."""
    return prompt[len(output) % len(prompt)]

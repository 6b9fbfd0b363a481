"""The tokenizer gives what transformers gives from the same files."""

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, processors

from pllm.runtime.errors import ArtifactError, RequestError, UserInputError
from pllm.runtime.tokenizer import Tokenizer

from .conftest import KINDS, byte_fallback, byte_level, word_level, word_piece

TEXTS = [
    "",
    " ",
    "The quick brown fox",
    "  two  spaces ",
    "你好、世界 😀 café",
    "<s>specials<|im_end|>\n</s> <think>x</think>",
    "a\u0301\r\n\x00",
    "<tool call>the  a.b",
]


def theirs(directory: Path):
    from transformers import PreTrainedTokenizerFast

    return PreTrainedTokenizerFast.from_pretrained(directory)


def assert_same(directory: Path) -> Tokenizer:
    ours, reference = Tokenizer.open(directory), theirs(directory)
    assert len(ours) == len(reference)
    for text in TEXTS:
        for add_special_tokens in (True, False):
            assert ours.encode(text, add_special_tokens) == reference.encode(
                text, add_special_tokens=add_special_tokens
            ), text
        ids = reference.encode(text)
        for skip in (True, False):
            assert ours.decode(ids, skip) == reference.decode(ids, skip_special_tokens=skip), text
    assert ours.special_tokens == reference.special_tokens_map
    assert ours.bos_token_id == reference.bos_token_id
    assert ours.eos_token_id == reference.eos_token_id
    assert ours.pad_token_id == reference.pad_token_id
    assert ours.get_vocab() == reference.get_vocab()
    return ours


@pytest.mark.parametrize("kind", KINDS)
def test_the_same_as_transformers(kind: str, tokenizer_directory) -> None:
    make, config = KINDS[kind]
    assert_same(tokenizer_directory(make(), {"eos_token": "</s>", **config}))


@pytest.mark.parametrize(
    "config",
    [
        {"bos_token": "<s>", "eos_token": "</s>", "add_bos_token": True},
        {"bos_token": "<s>", "eos_token": "</s>", "add_bos_token": True, "add_eos_token": True},
        {"bos_token": "<s>", "eos_token": "</s>", "add_bos_token": False},
        {"bos_token": None, "eos_token": "</s>", "add_bos_token": True},
        {
            "bos_token": {
                "__type": "AddedToken",
                "content": "<s>",
                "lstrip": False,
                "rstrip": True,
                "normalized": False,
                "single_word": False,
            }
        },
        {"pad_token": "<brand new pad>", "eos_token": "<think>"},
        {"extra_special_tokens": ["<extra>", "<s>"], "image_token": "<image>"},
        {"additional_special_tokens": ["<extra 1>", "<extra 2>"]},
        {"split_special_tokens": True, "eos_token": "</s>"},
        {
            "eos_token": "café",
            "added_tokens_decoder": {
                "340": {
                    "content": "<late>",
                    "lstrip": True,
                    "rstrip": True,
                    "normalized": False,
                    "single_word": False,
                    "special": True,
                },
                "334": {
                    "content": "<tool call>",
                    "lstrip": False,
                    "rstrip": False,
                    "normalized": True,
                    "single_word": False,
                    "special": True,
                },
            },
        },
        {"clean_up_tokenization_spaces": True},
        {
            "clean_up_tokenization_spaces": True,
            "clean_up_tokenization_spaces_for_bpe_even_though_it_will_corrupt_output": True,
        },
    ],
    ids=",".join,
)
def test_tokenizer_config_is_obeyed_as_transformers_does(config: dict[str, object], tokenizer_directory) -> None:
    assert_same(tokenizer_directory(byte_level(), config))


def test_a_post_processor_of_the_file_is_kept(tokenizer_directory) -> None:
    backend = byte_level()
    start = backend.token_to_id("<s>")
    backend.post_processor = processors.Sequence(
        [
            processors.ByteLevel(trim_offsets=False),
            processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", start)]),
        ]
    )
    ours = assert_same(tokenizer_directory(backend, {"bos_token": "<s>"}))
    assert ours.encode("a")[0] == start
    assert start not in ours.encode("a", add_special_tokens=False)


def test_padding_and_truncation_of_the_file_are_ignored(tokenizer_directory) -> None:
    backend = byte_level()
    backend.enable_truncation(max_length=2)
    backend.enable_padding(length=50)
    ours = Tokenizer.open(tokenizer_directory(backend))
    assert len(ours.encode("The quick brown fox")) == len(byte_level().encode("The quick brown fox").ids) > 2


def test_special_tokens_map_of_old_checkpoints(tokenizer_directory) -> None:
    assert_same(
        tokenizer_directory(
            byte_fallback(),
            {},
            special_tokens_map__json={
                "eos_token": "</s>",
                "bos_token": {
                    "content": "<s>",
                    "lstrip": False,
                    "rstrip": False,
                    "normalized": False,
                    "single_word": False,
                },
            },
        )
    )


@settings(max_examples=100, deadline=None)
@given(text=st.text(st.characters(blacklist_categories=["Cs"]), max_size=30))
def test_any_text_survives_byte_level(text: str) -> None:
    import unicodedata

    tokenizer = Tokenizer(byte_level(), {})
    assert tokenizer.decode(tokenizer.encode(text)) == unicodedata.normalize("NFC", text)


def test_text_that_is_no_unicode_is_refused() -> None:
    with pytest.raises(RequestError, match=r"character 1 .U.D83D. is half of a surrogate pair") as caught:
        Tokenizer(byte_level(), {}).encode("a\ud83d")
    assert caught.value.param == "prompt"


def test_missing_and_broken_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match=r"tokenizer\.json is missing"):
        Tokenizer.open(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(ArtifactError, match=r"tokenizer\.json is no tokenizer"):
        Tokenizer.open(tmp_path)
    word_level().save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "tokenizer_config.json").write_text("[1]")
    with pytest.raises(ArtifactError, match=r"tokenizer_config\.json must hold a JSON object"):
        Tokenizer.open(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text("{")
    with pytest.raises(ArtifactError, match=r"tokenizer_config\.json is not valid JSON"):
        Tokenizer.open(tmp_path)


@pytest.mark.parametrize(
    "config",
    [
        {"added_tokens_decoder": [1]},
        {"added_tokens_decoder": {"x": {"content": "a"}}},
        {"chat_template": 3},
        {"chat_template": [{"name": "default"}]},
        {"extra_special_tokens": [3]},
    ],
)
def test_a_config_of_the_wrong_shape_is_named(config: dict[str, object], tokenizer_directory) -> None:
    with pytest.raises(ArtifactError, match=r"tokenizer_config\.json is not what transformers writes"):
        Tokenizer.open(tokenizer_directory(byte_level(), config))


def test_what_skip_special_tokens_drops() -> None:
    backend = word_piece(cleanup=False)
    backend.add_tokens([AddedToken("<kept>", special=False)])
    tokenizer = Tokenizer(backend, {})
    kept, dropped = tokenizer.token_to_id("<kept>"), tokenizer.token_to_id("[SEP]")
    assert kept in tokenizer.added_ids - tokenizer.special_ids
    assert tokenizer.decode([kept, dropped], skip_special_tokens=True) == "<kept>"


def test_the_sources_of_chat_templates(tokenizer_directory) -> None:
    directory = tokenizer_directory(byte_level(), {"chat_template": "from config"})
    assert Tokenizer.open(directory).chat_template.sources == {"default": "from config"}
    config = {"chat_template": [{"name": "default", "template": "plain"}, {"name": "tool_use", "template": "tools"}]}
    (directory / "tokenizer_config.json").write_text(json.dumps(config))
    assert Tokenizer.open(directory).chat_template.sources == {"default": "plain", "tool_use": "tools"}
    assert theirs(directory).chat_template == {"default": "plain", "tool_use": "tools"}
    (directory / "chat_template.jinja").write_text("from file")
    assert Tokenizer.open(directory).chat_template.sources == {"default": "from file"}
    assert theirs(directory).chat_template == "from file"
    (directory / "additional_chat_templates").mkdir()
    (directory / "additional_chat_templates" / "rag.jinja").write_text("documents")
    assert Tokenizer.open(directory).chat_template.sources == theirs(directory).chat_template


def test_apply_chat_template_like_transformers(tokenizer_directory) -> None:
    template = "{% for m in messages %}{{ bos_token }}{{ m.role }}: {{ m.content }}{{ eos_token }}\n{% endfor %}"
    directory = tokenizer_directory(byte_level(), {"bos_token": "<s>", "eos_token": "</s>", "chat_template": template})
    ours, reference = Tokenizer.open(directory), theirs(directory)
    messages = [{"role": "user", "content": "你好"}]
    assert ours.apply_chat_template(messages) == reference.apply_chat_template(messages)["input_ids"]
    for choice in (None, "{{ messages[0].content }}"):
        assert ours.apply_chat_template(
            messages, tokenize=False, chat_template=choice
        ) == reference.apply_chat_template(messages, tokenize=False, chat_template=choice)
    with pytest.raises(RequestError, match="no chat template"):
        Tokenizer(byte_level(), {}).apply_chat_template(messages)


def test_the_operators_own_template(tmp_path: Path) -> None:
    tokenizer = Tokenizer(byte_level(), {"bos_token": "<s>"}, {"default": "model's", "rag": "named"})
    messages = [{"role": "user", "content": "x"}]
    (tmp_path / "mine.jinja").write_text("mine", encoding="utf-8")
    for template, text in (("{{ bos_token }}", "<s>"), (str(tmp_path / "mine.jinja"), "mine"), ("rag", "named")):
        assert tokenizer.chosen_template(template).render(messages) == text
    with pytest.raises(UserInputError, match=r"other\.jinja cannot be read"):
        tokenizer.chosen_template(str(tmp_path / "other.jinja"))
    with pytest.raises(ArtifactError, match="leads out of its sandbox"):
        tokenizer.chosen_template("{{ ''.__class__ }}")

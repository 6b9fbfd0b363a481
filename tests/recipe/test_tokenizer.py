"""The artifact's tokenizer encodes, decodes and renders as transformers' does of the checkpoint; a hostile chat
template is refused."""

import io
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from rich.console import Console
from tokenizers import Tokenizer as Backend
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors
from tokenizers.trainers import BpeTrainer, UnigramTrainer
from transformers import AutoTokenizer

from pllm.build.checkpoint import Checkpoint
from pllm.build.pack import build_lock, stage
from pllm.build.pipeline import Build
from pllm.build.progress import Progress
from pllm.build.recipe import Recipe
from pllm.build.resolve import ModelFacts, kv_info, resolve
from pllm.build.tokenizer import save_tokenizer
from pllm.runtime.errors import BuildError, CheckpointError
from pllm.runtime.tokenizer import Tokenizer

from .conftest import write_checkpoint

ROOT = Path(__file__).parents[2]
CORPUS = [
    "The quick brown fox jumps over the lazy dog. It doesn't matter, does it?",
    "你好、世界。今天天气很好。 naïve café über straße",
    "emoji 😀 and 1234567890 + 42 = 7",
    "  indented\n\ttext\n\n  with   spaces ",
] * 4
TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}[{{ m.role }}]{{ m.content | trim }}{{ eos_token }}{% endfor %}"
    "{% if tools %}{{ tools | tojson }}{% endif %}{% if add_generation_prompt %}[assistant]{% endif %}"
)
NAMED = {"bos_token": "<s>", "eos_token": "</s>", "chat_template": TEMPLATE}


def llama_3() -> tuple[Backend, dict[str, Any]]:
    """Byte-level BPE, the first token put in front by the post-processor."""
    backend = Backend(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = BpeTrainer(vocab_size=330, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False)
    backend.train_from_iterator(CORPUS, trainer)
    backend.add_special_tokens(["<s>", "</s>", "<|eot|>"])
    backend.post_processor = processors.Sequence(
        [
            processors.ByteLevel(trim_offsets=False),
            processors.TemplateProcessing("<s> $A", "<s> $A <s> $B", [("<s>", backend.token_to_id("<s>"))]),
        ]
    )
    return backend, {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": True, **NAMED}


def llama_2() -> tuple[Backend, dict[str, Any]]:
    """SentencePiece's BPE as its converter wrote it, of a class whose pipeline transformers builds anew."""
    backend = Backend(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    backend.train_from_iterator(CORPUS, BpeTrainer(vocab_size=400, special_tokens=pieces, show_progress=False))
    model = json.loads(backend.to_str())["model"]
    merges = [tuple(merge) for merge in model["merges"]]
    trained = models.BPE(model["vocab"], merges, unk_token="<unk>", byte_fallback=True, fuse_unk=True)
    fresh = Backend(trained)
    fresh.normalizer = backend.normalizer
    fresh.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    fresh.add_special_tokens(["<unk>", "<s>", "</s>"])
    return fresh, {"tokenizer_class": "LlamaTokenizer", "add_bos_token": True, "legacy": False, **NAMED}


def unigram() -> tuple[Backend, dict[str, Any]]:
    """SentencePiece's unigram, a space before the first word."""
    backend = Backend(models.Unigram())
    backend.normalizer = normalizers.NFKC()
    backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    backend.decoder = decoders.Metaspace(prepend_scheme="always")
    special = ["<unk>", "<s>", "</s>"]
    backend.train_from_iterator(
        CORPUS, UnigramTrainer(vocab_size=200, special_tokens=special, unk_token="<unk>", show_progress=False)
    )
    return backend, {"tokenizer_class": "PreTrainedTokenizerFast", "add_eos_token": True, **NAMED}


def word_piece() -> tuple[Backend, dict[str, Any]]:
    """As BERT, whose text is tidied up after decoding."""
    pieces = ["[UNK]", "<s>", "</s>", "the", "quick", "##er", "it", "is", "n", "##'t", ".", ",", "?", "do", "a"]
    backend = Backend(models.WordPiece({piece: i for i, piece in enumerate(pieces)}, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    backend.decoder = decoders.WordPiece(cleanup=False)
    return backend, {"clean_up_tokenization_spaces": True, "unk_token": "[UNK]", **NAMED}


KINDS = {"llama 3": llama_3, "llama 2": llama_2, "unigram": unigram, "word piece": word_piece}


def checkpoint_with(folder: Path, kind: str, **config: Any) -> Checkpoint:
    """A checkpoint with such a tokenizer; ``config`` changes its tokenizer_config.json."""
    write_checkpoint(folder, model_type="llama", architectures=["LlamaForCausalLM"])
    backend, described = KINDS[kind]()
    backend.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps(described | config), encoding="utf-8")
    return Checkpoint(folder, label="tiny")


def saved(checkpoint: Checkpoint, target: Path) -> tuple[Path, str]:
    """The tokenizer's folder as the stage makes it, and what it said."""
    recipe = resolve(Recipe.for_model(str(checkpoint.directory), []), checkpoint, lambda _: None)
    console = Console(file=io.StringIO(), width=500)
    facts = ModelFacts.of(checkpoint.config, checkpoint.label)
    with build_lock(target, lambda: None), stage(target) as staging:
        build = Build(recipe=recipe, checkpoint=checkpoint, facts=facts, kv=kv_info(recipe, facts), staging=staging)
        with Progress(console).stage("tokenizer") as progress:
            save_tokenizer(build, progress)
        written = {path.relative_to(staging.directory).as_posix() for path in staging.directory.rglob("*")}
        assert set(build.tokenizer) <= written
        assert build.tokenizer[0] == "tokenizer/tokenizer.json"
        shutil.copytree(staging.directory / "tokenizer", target)
    assert isinstance(console.file, io.StringIO)
    return target, console.file.getvalue()


@pytest.fixture(scope="module", params=["quickstart", *KINDS])
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Tokenizer, Any]:
    """The runtime's tokenizer of what the build saved, and transformers' of the checkpoint."""
    folder = tmp_path_factory.mktemp("tokenizer")
    if request.param == "quickstart":
        checkpoint = Checkpoint(ROOT / "recipes" / "quickstart", label="quickstart")
    else:
        checkpoint = checkpoint_with(folder / "checkpoint", request.param)
    target, said = saved(checkpoint, folder / "out")
    assert "texts encoded as transformers does" in said
    assert "conversations rendered as transformers does" in said
    assert str(folder) not in "".join(path.read_text(encoding="utf-8") for path in target.rglob("*") if path.is_file())
    return Tokenizer.open(target), AutoTokenizer.from_pretrained(checkpoint.directory)


TEXT = st.text() | st.lists(st.sampled_from([*"ab the é你😀 \n<>", "<s>", "</s>", "  ", "▁", "it is n't"])).map("".join)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(text=TEXT, special=st.booleans(), skip=st.booleans())
def test_text_and_ids_are_those_of_transformers(
    pair: tuple[Tokenizer, Any], text: str, special: bool, skip: bool
) -> None:
    ours, theirs = pair
    ids = theirs.encode(text, add_special_tokens=special)
    assert ours.encode(text, special) == ids
    assert ours.decode(ids, skip) == theirs.decode(ids, skip_special_tokens=skip)


def test_every_token_and_the_special_ones_are_those_of_transformers(pair: tuple[Tokenizer, Any]) -> None:
    ours, theirs = pair
    assert ours.get_vocab() == theirs.get_vocab()
    assert ours.special_tokens == theirs.special_tokens_map
    assert (ours.bos_token_id, ours.eos_token_id) == (theirs.bos_token_id, theirs.eos_token_id)
    for token_id in range(len(theirs)):
        assert ours.decode([token_id]) == theirs.decode([token_id])


def test_conversations_are_rendered_to_the_same_ids(pair: tuple[Tokenizer, Any]) -> None:
    ours, theirs = pair
    messages = [{"role": "user", "content": " the 你好 "}, {"role": "assistant", "content": "it is n't ."}]
    tool = {"type": "function", "function": {"name": "add", "parameters": {"type": "object", "properties": {}}}}
    for tools in (None, [tool]):
        for prompt in (True, False):
            expected = theirs.apply_chat_template(messages, tools=tools, add_generation_prompt=prompt)["input_ids"]
            assert ours.apply_chat_template(messages, tools, add_generation_prompt=prompt) == expected


def test_the_files_alone_would_encode_otherwise(tmp_path: Path) -> None:
    """What the stage is for: transformers' LlamaTokenizer takes only the vocabulary from tokenizer.json."""
    checkpoint = checkpoint_with(tmp_path / "checkpoint", "llama 2")
    text = "the</s> fox"
    copied = Tokenizer.open(checkpoint.directory)
    assert copied.encode(text) != AutoTokenizer.from_pretrained(checkpoint.directory).encode(text)


def test_the_same_tokenizer_makes_the_same_bytes(tmp_path: Path) -> None:
    checkpoint = checkpoint_with(tmp_path / "checkpoint", "llama 2", extra_special_tokens=["<x>", "<y>", "<z>"])
    first, _ = saved(checkpoint, tmp_path / "a")
    second, _ = saved(checkpoint, tmp_path / "b")
    for path in (path for path in first.rglob("*") if path.is_file()):
        assert path.read_bytes() == (second / path.relative_to(first)).read_bytes()


HOSTILE = {
    "Python's insides": "{{ messages.__class__.__mro__ }}",
    "insides by filter": "{{ (''|attr('__class__')).mro() }}",
    "insides by name": "{% set name = '_' ~ '_class_' ~ '_' %}{{ messages[name].mro() }}",
    "insides by namespace": "{% set n = namespace() %}{% set n.__class__ = 1 %}",
    "a loop without end": "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
    "too much text": "{% for i in range(99999) %}{{ 'x' * 99999 }}{% endfor %}",
}


@pytest.mark.parametrize("hostile", HOSTILE)
def test_a_hostile_chat_template_is_refused(hostile: str, tmp_path: Path) -> None:
    checkpoint = checkpoint_with(tmp_path / "checkpoint", "llama 3", chat_template=HOSTILE[hostile])
    with pytest.raises(CheckpointError, match=r"^tiny: .*chat template"):
        saved(checkpoint, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_template_that_only_refuses_some_conversations_is_fine(tmp_path: Path) -> None:
    template = (
        "{% for m in messages %}{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}"
        "{{ raise_exception('Roles must alternate.') }}{% endif %}{{ m.content }}{% endfor %}"
    )
    checkpoint = checkpoint_with(tmp_path / "checkpoint", "llama 3", chat_template=template)
    _, said = saved(checkpoint, tmp_path / "out")
    assert "of 6 conversations rendered" in said
    assert "Roles must alternate." in said


def test_a_model_without_a_chat_template_says_so(tmp_path: Path) -> None:
    checkpoint = checkpoint_with(tmp_path / "checkpoint", "llama 3", chat_template=None)
    _, said = saved(checkpoint, tmp_path / "out")
    assert "no chat template" in said


def test_a_template_that_is_rendered_otherwise_here_stops_the_build(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint = checkpoint_with(tmp_path / "checkpoint", "llama 3")
    render = "pllm.runtime.chat_template.ChatTemplate.render"
    monkeypatch.setattr(render, lambda self, messages, tools=None, **_: "something else")
    with pytest.raises(BuildError, match=r"gives 'something else' here and '<s>\[user\]"):
        saved(checkpoint, tmp_path / "out")


def test_a_tokenizer_that_encodes_otherwise_here_stops_the_build(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint = checkpoint_with(tmp_path / "checkpoint", "llama 3")
    encode = Tokenizer.encode
    monkeypatch.setattr(Tokenizer, "encode", lambda self, text, special=True: [*encode(self, text, special), 0])
    with pytest.raises(BuildError, match="cannot be served: the runtime encodes"):
        saved(checkpoint, tmp_path / "out")


def test_a_tokenizer_that_cannot_encode_is_refused(tmp_path: Path) -> None:
    """It names an unknown token that its vocabulary lacks."""
    checkpoint = checkpoint_with(tmp_path / "checkpoint", "llama 3")
    Backend(models.WordLevel({"a": 0}, unk_token="<unk>")).save(str(checkpoint.directory / "tokenizer.json"))
    with pytest.raises(CheckpointError, match=r"tiny: its tokenizer \(\w+\) cannot encode"):
        saved(checkpoint, tmp_path / "out")


def test_a_tokenizer_that_transformers_cannot_load_is_refused(checkpoint_path: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="transformers cannot load its tokenizer"):
        saved(Checkpoint(checkpoint_path, label="tiny"), tmp_path / "out")

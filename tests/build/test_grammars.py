"""The stage that tries a recipe's schemas and grammars out on the model's tokens."""

import io
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from rich.console import Console
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from pllm.build.grammars import ship_grammars
from pllm.build.pack import Staging
from pllm.build.progress import Progress
from pllm.build.recipe import Recipe
from pllm.runtime.errors import ArtifactDamagedError, RecipeError
from pllm.runtime.manifest import GrammarsInfo
from pllm.runtime.shipped_forms import shipped_forms
from pllm.runtime.structured_outputs import StructuredOutputsParams


def ship(folder: Path, generation: dict[str, Any] | None = None, **named: list[str]) -> GrammarsInfo | None:
    """Run the stage over a vocabulary of printable signs; what the artifact is then said to hold."""
    recipe = Recipe.from_table(
        {"model": {"source": "x"}, "structured_outputs": named}, name="x", folder=folder, origin="x.toml"
    )
    staging = Staging(folder / "target", folder / "artifact")
    tokenizer = Tokenizer(models.BPE({chr(0x21 + i): i for i in range(94)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken("<end>", special=True)])
    tokenizer.save(str(staging.path("tokenizer/tokenizer.json")))
    build: Any = SimpleNamespace(
        recipe=recipe,
        staging=staging,
        tokenizer=("tokenizer/tokenizer.json",),
        model=SimpleNamespace(vocab_size=96),
        checkpoint=SimpleNamespace(generation_config={"eos_token_id": 94} if generation is None else generation),
        grammars=None,
    )
    with Progress(Console(file=io.StringIO())).stage("grammars") as running:
        ship_grammars(build, running)
    found: GrammarsInfo | None = build.grammars
    return found


def test_what_compiles_is_shipped_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "point.json").write_text('{"type": "object",  "properties": {"x": {"type": "integer"}}}')
    (tmp_path / "pin.gbnf").write_text("root ::= [0-9]{4}")
    (tmp_path / "more").mkdir()
    (tmp_path / "more" / "word.lark").write_text("start: /[a-z]+/")
    found = ship(tmp_path, schemas=["point.json"], grammars=["pin.gbnf", "more/word.lark"])
    assert found == GrammarsInfo(
        files=("grammars/point.json", "grammars/pin.gbnf", "grammars/word.lark"), eos_token_ids=(94,)
    )
    forms = shipped_forms(tmp_path / "artifact", found.files)
    assert forms == {
        "point": StructuredOutputsParams(json={"type": "object", "properties": {"x": {"type": "integer"}}}),
        "pin": StructuredOutputsParams(grammar="root ::= [0-9]{4}"),
        "word": StructuredOutputsParams(grammar="start: /[a-z]+/"),
    }


def test_none_named(tmp_path: Path) -> None:
    assert ship(tmp_path) is None
    assert not (tmp_path / "artifact" / "grammars").exists()


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("a.json", "{", "a.json: structured_outputs.json is not JSON"),
        ("a.json", '{"not": {}}', "a.json: The grammar cannot be"),
        ("a.lark", "start: nothing", "a.lark: The grammar cannot be"),
        ("a.lark", "\udcff", "a.lark"),
    ],
)
def test_what_does_not_compile_stops_the_build_by_its_name(tmp_path: Path, name: str, text: str, said: str) -> None:
    (tmp_path / name).write_bytes(text.encode("utf-8", "surrogateescape"))
    key = "schemas" if name.endswith("json") else "grammars"
    with pytest.raises(RecipeError, match=f"structured_outputs.{key}: {said}"):
        ship(tmp_path, **{key: [name]})


def test_a_model_without_an_end_token_cannot_end_a_form(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text("{}")
    with pytest.raises(RecipeError, match="no end token"):
        ship(tmp_path, generation={}, schemas=["a.json"])


def test_a_shipped_form_that_is_none(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text("{")
    with pytest.raises(ArtifactDamagedError, match=r"a\.json is malformed"):
        shipped_forms(tmp_path, ["a.json"])

"""Recipes: what is read, and how what is wrong is said."""

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
import tomli
from hypothesis import given
from hypothesis import strategies as st

from pllm.build.recipe import Recipe
from pllm.build.recipe_reference import recipe_text, reference_page
from pllm.build.recipe_sections import SECTIONS
from pllm.build.toml_text import toml_text
from pllm.runtime.errors import RecipeError

RECIPES = Path(__file__).parent.parent.parent / "recipes"
MINIMAL = '[model]\nsource = "org/name"\n'


def load(tmp_path: Path, text: str, overrides: Sequence[str] = ()) -> Recipe:
    path = tmp_path / "mine.toml"
    path.write_text(text)
    return Recipe.load(path, overrides)


def refused(tmp_path: Path, text: str, overrides: Sequence[str] = ()) -> str:
    with pytest.raises(RecipeError) as caught:
        load(tmp_path, text, overrides)
    assert caught.value.exit_code == 2
    return str(caught.value)


def test_everything_but_the_source_has_a_default(tmp_path: Path) -> None:
    recipe = load(tmp_path, MINIMAL)
    assert recipe.name == "mine"
    assert recipe.engine.block_size == 16
    assert recipe.source_directory() is None
    assert Recipe.for_model("org/Name").name == "name"


def test_broken_toml_is_shown_with_its_place_and_a_caret(tmp_path: Path) -> None:
    message = refused(tmp_path, '[model]\nsource = "a/b"\nrevision = = 3\n')
    place, line, caret = message.splitlines()
    assert "mine.toml:3:12: " in place
    assert line == "  revision = = 3"
    assert caret.index("^") == line.index("= 3")


def test_all_unknown_keys_come_at_once_each_with_the_nearest(tmp_path: Path) -> None:
    engine = "[engine]\nmax_seqs = 2\nkv = 'x'\nxyzzy = 1\n"
    message = refused(tmp_path, f"block_size = 1\n{MINIMAL}revison = 'x'\n{engine}[quantisation]\n")
    assert "mine.toml: 6 mistakes" in message
    assert "model.revison is not a key: did you mean model.revision?" in message
    assert "engine.max_seqs is not a key: did you mean engine.max_num_seqs?" in message
    assert "engine.kv is not a key: did you mean quantization.kv?" in message
    assert "engine.xyzzy is not a key: the keys are max_model_len" in message
    assert "quantisation is not a key: did you mean quantization?" in message
    assert "block_size is not a key: did you mean engine.block_size?" in message


@pytest.mark.parametrize(
    ("section", "line", "said"),
    [
        ("engine", "block_size = 8", "engine.block_size must be an integer from 16 to 256 in steps of 16, not 8"),
        ("engine", "block_size = 24", "in steps of 16, not 24"),
        ("engine", "block_size = true", "not true"),
        ("engine", 'max_num_seqs = "4"', 'engine.max_num_seqs must be an integer from 1 to 4096, not "4"'),
        ("engine", "max_model_len = 0", 'must be "auto" or an integer from 16'),
        ("engine", 'memory = "4 gigs"', "engine.memory must be"),
        ("engine", "memory = 1.5", "engine.memory must be"),
        ("engine", "buckets = []", "engine.buckets must be"),
        ("engine", "buckets = [4, 2]", "ascending"),
        ("engine", "buckets = [1, 64]", "64 is more than engine.max_num_seqs (32)"),
        ("engine", "inter_token_target_ms = nan", "must be a number from 1 to 60000"),
        ("engine", "max_num_seqs = 600\nmax_num_batched_tokens = 512", "must be at least engine.max_num_seqs (600)"),
        ("engine", "threads = -1", 'must be "auto" or an integer from 1 to 1024, not -1'),
        ("quantization", 'weights = "int3"', 'must be "auto", "float32", "bf16", "int8" or "int4", not "int3"'),
        ("quantization", 'kv = "fp8"', "is not in this version"),
        ("quantization", 'kv = "q4"', 'must be "auto", "float32", "bf16" or "int8", not "q4"'),
        ("device", 'kind = "tpu"', 'must be "auto", "cpu" or "cuda"'),
        ("verify", "max_skipped_share = 2", 'must be "auto" or a number from 0 to 1, not 2'),
    ],
)
def test_wrong_types_and_ranges_name_the_key_and_the_range(tmp_path: Path, section: str, line: str, said: str) -> None:
    assert said in refused(tmp_path, f"{MINIMAL}[{section}]\n{line}\n")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "model.source is missing"),
        ("model = 3", "model must be a table: write [model]"),
        ('name = "../up"\n' + MINIMAL, "name must be letters"),
        ('name = ".hidden"\n' + MINIMAL, "name must be letters"),
        ('[model]\nsource = ""', "model.source must be a string that is not empty"),
        (MINIMAL + "[model.config]\nvocab_size = 3\n", 'model.config is for model.weights = "random"'),
    ],
)
def test_other_mistakes(tmp_path: Path, text: str, said: str) -> None:
    assert said in refused(tmp_path, text)


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ('schemas = ["none.json"]', "structured_outputs.schemas: there is no file"),
        ('schemas = ["."]', "structured_outputs.schemas: there is no file"),
        ('schemas = ["a.json", "deep/a.json"]', "a.json and a.json have the same name"),
        ('schemas = ["a.json"]\ngrammars = ["a.lark"]', "a.lark and a.json have the same name"),
        ('grammars = ["a.json"]', "schemas are .json files, grammars are not"),
        ('schemas = ["large.json"]', "large.json has 300000 bytes; at most"),
        ('schemas = ["an odd name.json"]', "a file's name is letters"),
        ('schemas = "a.json"', "structured_outputs.schemas must be a list of strings"),
        ("schemas = [3]", "structured_outputs.schemas must be a string"),
    ],
)
def test_forms_that_cannot_be_read(tmp_path: Path, line: str, said: str) -> None:
    (tmp_path / "deep").mkdir()
    for name in ("a.json", "deep/a.json", "a.lark", "an odd name.json"):
        (tmp_path / name).write_text("{}")
    (tmp_path / "large.json").write_text(" " * 300_000)
    assert said in refused(tmp_path, f"{MINIMAL}[structured_outputs]\n{line}\n")


def test_a_form_s_content_is_part_of_the_fingerprint(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text("{}")
    recipe = load(tmp_path, f'{MINIMAL}[structured_outputs]\nschemas = ["{tmp_path}/a.json"]\n')
    before = recipe.fingerprint
    assert str(tmp_path) not in recipe.lock_text()
    (tmp_path / "a.json").write_text('{"type": "object"}')
    assert recipe.fingerprint != before


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b'name = "caf\xe9"', "byte 11 is not UTF-8"),
        (b"x = " + b"[" * 5000, "nested too deeply|:1:"),
        (None, "No such file"),
    ],
    ids=["not UTF-8", "deep", "missing"],
)
def test_files_that_are_no_recipe(tmp_path: Path, content: bytes | None, said: str) -> None:
    path = tmp_path / "x.toml"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(RecipeError, match=said):
        Recipe.load(path)


def test_an_endless_file_is_no_recipe() -> None:
    with pytest.raises(RecipeError, match="are no recipe"):
        Recipe.load("/dev/zero")


def test_overrides_are_checked_like_the_file(tmp_path: Path) -> None:
    recipe = load(
        tmp_path,
        MINIMAL,
        ["engine.max_num_seqs=4", "quantization.kv=bf16", "engine.memory=4GiB", "engine.buckets=[1, 4]", "name=other"],
    )
    assert recipe.engine.max_num_seqs == 4
    assert recipe.quantization.kv == "bf16"
    assert recipe.engine.memory == "4GiB"
    assert recipe.engine.buckets == (1, 4)
    assert recipe.name == "other"
    message = refused(tmp_path, MINIMAL, ["engine.max_seqs=4", "nonsense", "engine.threads=x", "model.source.x=1"])
    assert "did you mean engine.max_num_seqs?" in message
    assert "--set nonsense: write --set section.key=value" in message
    assert 'engine.threads must be "auto" or an integer' in message
    assert "--set model.source.x=1: model.source is not a table" in message


def test_a_source_beside_the_recipe_is_a_directory(tmp_path: Path) -> None:
    (tmp_path / "weights").mkdir()
    assert load(tmp_path, '[model]\nsource = "weights"\n').source_directory() == tmp_path / "weights"
    assert load(tmp_path, '[model]\nsource = "./none"\n').source_directory() == tmp_path / "none"


def test_the_lock_is_the_recipe_and_names_no_path_of_this_machine(tmp_path: Path) -> None:
    (tmp_path / "weights").mkdir()
    recipe = load(tmp_path, f'[model]\nsource = "{tmp_path}/weights"\n[engine]\nmemory = 0.5\nbuckets = [1, 2]\n')
    lock = recipe.lock_text()
    assert str(tmp_path) not in lock
    assert tomli.loads(lock)["model"]["source"] == "weights"
    again = load(tmp_path, lock)
    assert (again.engine, again.quantization, again.verify) == (recipe.engine, recipe.quantization, recipe.verify)
    assert again.lock_text() == lock
    assert again.fingerprint == recipe.fingerprint
    assert recipe.with_values("engine", threads=2).fingerprint != recipe.fingerprint


@pytest.mark.parametrize("path", sorted(RECIPES.glob("*.toml")), ids=lambda path: path.stem)
def test_every_recipe_of_the_repository_is_right(path: Path) -> None:
    recipe = Recipe.load(path)
    assert recipe.name == path.stem
    assert path.read_text().startswith("# ")
    assert "revision" in path.read_text() or recipe.model.weights == "random" or recipe.source_directory()


def test_the_reference_page_is_made_from_the_schema() -> None:
    page = (RECIPES / "README.md").read_text()
    assert page == reference_page(), "run: python -m pllm.build.recipe_reference > recipes/README.md"
    for kind in SECTIONS.values():
        for name in kind.__dataclass_fields__:
            assert f"| `{name}` |" in page


def test_the_recipe_that_init_writes_is_right_with_and_without_its_comments(tmp_path: Path) -> None:
    text = recipe_text("org/name")
    defaults = load(tmp_path, MINIMAL)
    assert load(tmp_path, text) == defaults
    lines = [line.removeprefix("#") if line[:2] != "# " else line for line in text.splitlines()]
    uncommented = "\n".join(lines)
    assert load(tmp_path, uncommented) == load(tmp_path, MINIMAL, ["engine.inter_token_target_ms=100"])


plain = st.one_of(
    st.text(max_size=20),
    st.integers(-(2**60), 2**60),
    st.booleans(),
    st.floats(allow_nan=False),
    st.lists(st.integers(0, 9), max_size=3),
)
tables = st.recursive(
    st.dictionaries(st.text(min_size=1, max_size=8), plain, max_size=4),
    lambda inner: st.dictionaries(st.text(min_size=1, max_size=8), st.one_of(plain, inner), max_size=3),
    max_leaves=6,
)


@given(tables)
def test_the_toml_we_write_is_read_back(table: dict[str, object]) -> None:
    assert tomli.loads(toml_text(table)) == table


@given(st.text(max_size=200))
def test_any_text_is_a_recipe_or_refused(text: str) -> None:
    try:
        table = tomli.loads(text)
    except tomli.TOMLDecodeError:
        return
    with pytest.raises(RecipeError):
        Recipe.from_table(table, name="x", folder=Path())


def test_recipe_errors_import_neither_torch_nor_transformers(tmp_path: Path) -> None:
    (tmp_path / "bad.toml").write_text("[model]\nsurce = 1\n")
    script = (
        "import sys; from pllm.cli import main; assert main(['build', sys.argv[1]]) == 2; "
        "heavy = {'torch', 'transformers', 'numpy', 'huggingface_hub'} & set(sys.modules); assert not heavy, heavy"
    )
    path = str(tmp_path / "bad.toml")
    done = subprocess.run([sys.executable, "-c", script, path], check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "did you mean model.source?" in done.stderr

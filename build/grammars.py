"""Grammars: the schemas and grammars that the recipe names, tried on the model's own tokens, and shipped."""

from pllm.build.pipeline import Build
from pllm.build.progress import StageProgress
from pllm.runtime.errors import RecipeError, RequestError
from pllm.runtime.generation_config import GenerationConfig
from pllm.runtime.grammar import Grammar, Vocabulary
from pllm.runtime.manifest import GrammarsInfo
from pllm.runtime.shipped_forms import FOLDER, form_of
from pllm.runtime.tokenizer import Tokenizer

__all__ = ["ship_grammars"]


def ship_grammars(build: Build, progress: StageProgress) -> None:
    """Compile each, and put its text into the artifact: llguidance's automata grow as they are used, and have no form
    to be stored. Raises RecipeError for one that does not compile, naming its file.
    """
    files = build.recipe.structured_outputs.files(build.recipe.folder)
    if not files:
        progress.say("the recipe names none")
        return
    tokenizer = build.staging.path(build.tokenizer[0])
    ends = GenerationConfig.from_dict(build.checkpoint.generation_config).end_tokens(Tokenizer.open(tokenizer.parent))
    try:
        vocabulary = Vocabulary(tokenizer, build.model.vocab_size, ends)
    except RequestError as error:
        raise RecipeError(f"structured_outputs: {error}") from None
    names = []
    for key, path in files:
        try:
            text = path.read_text("utf-8")
            Grammar(form_of(path.name, text), vocabulary)
        except (OSError, UnicodeError, RequestError) as error:
            raise RecipeError(f"{key}: {path.name}: {error}") from None
        names.append(f"{FOLDER}/{path.name}")
        build.staging.path(names[-1]).write_text(text, encoding="utf-8")
    build.grammars = GrammarsInfo(files=tuple(names), eos_token_ids=ends)
    progress.say(f"compiled: {', '.join(path.name for _, path in files)}")

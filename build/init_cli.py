"""``pllm init``: a commented recipe for a model, to begin from."""

import sys
from argparse import ArgumentParser, Namespace
from pathlib import Path

from pllm.build.hub import is_hub_id
from pllm.build.recipe import Recipe
from pllm.build.recipe_reference import recipe_text
from pllm.runtime.errors import UserInputError

__all__ = ["add_arguments", "main"]


def add_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("model", metavar="MODEL", help="a checkpoint directory or a Hub id")
    parser.add_argument(
        "--output", type=Path, metavar="FILE", help="the recipe to write (default: NAME.toml; - for standard output)"
    )


def main(arguments: Namespace) -> int:
    if not Path(arguments.model).expanduser().is_dir() and not is_hub_id(arguments.model):
        raise UserInputError(f"{arguments.model!r} is neither a directory nor a Hub id such as Qwen/Qwen3-0.6B")
    recipe = Recipe.for_model(arguments.model)
    text = recipe_text(arguments.model)
    if arguments.output == Path("-"):
        sys.stdout.write(text)
        return 0
    path = arguments.output or Path(f"{recipe.name}.toml")
    try:
        with path.open("x", encoding="utf-8") as file:
            file.write(text)
    except FileExistsError:
        raise UserInputError(f"{path} exists; give another --output") from None
    except OSError as error:
        raise UserInputError(f"{path}: {error.strerror}") from None
    print(f"{path}: edit it, then run: pllm build {path}")
    return 0

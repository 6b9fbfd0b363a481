"""``pllm build``: a recipe or a model becomes an artifact."""

import os
import signal
from argparse import ArgumentParser, Namespace
from pathlib import Path
from types import FrameType

from pllm.build.pipeline import build_artifact
from pllm.build.progress import Progress
from pllm.build.recipe import Recipe

__all__ = ["add_arguments", "main"]


def add_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("source", metavar="RECIPE|MODEL", help="a recipe (.toml), a checkpoint directory, or a Hub id")
    parser.add_argument("--output", type=Path, metavar="DIR", help="where the artifact goes (default: artifacts/NAME)")
    parser.add_argument(
        "--set",
        dest="overrides",
        action="append",
        default=[],
        metavar="SECTION.KEY=VALUE",
        help="a key of the recipe, decided here; may be given several times",
    )
    parser.add_argument("--force", action="store_true", help="build even where the artifact is up to date")


def main(arguments: Namespace) -> int:
    source = arguments.source
    is_recipe = source.endswith(".toml") or Path(source).is_file()
    recipe = (Recipe.load if is_recipe else Recipe.for_model)(source, arguments.overrides)
    target = arguments.output or Path("artifacts") / recipe.name
    # Before torch loads OpenMP, whose waiting threads would spin beside a neighbour's for minutes (DECISIONS.md).
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    # A terminated build cleans up after itself like an interrupted one.
    signal.signal(signal.SIGTERM, _terminated)
    build_artifact(recipe, target, Progress(), force=arguments.force)
    print(target)
    return 0


def _terminated(number: int, _: FrameType | None) -> None:
    raise SystemExit(128 + number)

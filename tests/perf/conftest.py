"""The artifact that is timed: the quickstart, built where it is not fresh, or what PLLM_TEST_ARTIFACT names."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from pllm.build.pipeline import build_artifact
from pllm.build.progress import Progress
from pllm.build.recipe import Recipe
from pllm.runtime.engine_core import EngineCore

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="session")
def quickstart() -> Path:
    target = Path(os.environ.get("PLLM_TEST_ARTIFACT") or ROOT / "artifacts" / "quickstart")
    build_artifact(Recipe.load(ROOT / "recipes" / "quickstart.toml", []), target, Progress())
    return target


@pytest.fixture(scope="module")
def core(quickstart: Path) -> Iterator[EngineCore]:
    """One thread: what a neighbour takes from another is noise."""
    opened = EngineCore.open(quickstart, enable_prefix_caching=False, threads=1)
    opened.wait_settled()
    yield opened
    opened.close()

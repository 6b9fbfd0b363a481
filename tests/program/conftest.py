"""Artifacts of tiny models, built once for the session: each costs a compilation."""

from pathlib import Path

import pytest

from .artifacts import Builds, Built


@pytest.fixture(scope="session")
def builds(tmp_path_factory: pytest.TempPathFactory) -> Builds:
    return Builds(tmp_path_factory.mktemp("built"))


@pytest.fixture(scope="session")
def tiny(builds: Builds) -> Built:
    """The smallest of them."""
    return builds.of("llama")


@pytest.fixture
def copied(tiny: Built, tmp_path: Path) -> Path:
    """The artifact's own copy, to be damaged."""
    return tiny.copy_to(tmp_path / "copy")

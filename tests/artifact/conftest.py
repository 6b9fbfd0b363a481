"""Each test has a user cache of its own, and may ask for a sealed artifact."""

from pathlib import Path

import pytest

from .sealed import make_artifact


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("PLLM_CACHE", str(folder))
    return folder


@pytest.fixture
def artifact_path(tmp_path: Path) -> Path:
    return make_artifact(tmp_path / "tiny")

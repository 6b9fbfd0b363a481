"""The order of the tests: what takes seconds first, so that a mistake shows early; compilations last."""

from pathlib import Path

import pytest

HERE = Path(__file__).parent
FIRST = ("engine", "test_house.py", "artifact")
LAST = ("server", "text", "kernels", "build", "program", "e2e")


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=_turn)


def _turn(item: pytest.Item) -> int:
    place = item.path.relative_to(HERE).parts[0] if item.path.is_relative_to(HERE) else ""
    if place in FIRST:
        return FIRST.index(place) - len(FIRST)
    return LAST.index(place) + 1 if place in LAST else 0

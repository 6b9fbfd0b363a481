"""The order of the tests: what takes seconds first, so that a mistake shows early; compilations last."""

import signal
from pathlib import Path

import pytest

HERE = Path(__file__).parent
FIRST = ("engine", "test_house.py", "artifact")
LAST = ("server", "text", "kernels", "build", "program", "e2e")


def pytest_configure() -> None:
    # A shell's background job inherits a Ctrl-C that is ignored; the tests that interrupt need Python's own answer.
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=_turn)


def _turn(item: pytest.Item) -> int:
    place = item.path.relative_to(HERE).parts[0] if item.path.is_relative_to(HERE) else ""
    if place in FIRST:
        return FIRST.index(place) - len(FIRST)
    return LAST.index(place) + 1 if place in LAST else 0

"""What pllm's own Python calls while it runs, counted call by call."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import wraps
from types import FrameType
from typing import Any

__all__ = ["Calls", "count_calls", "counted_calls"]

_COUNTING = "pllm.runtime.gate."
_INLINED = frozenset(("<listcomp>", "<dictcomp>", "<setcomp>"))
"""Functions of their own until Python 3.11, and no more from 3.12 on: not counted, so that both count alike."""


@dataclass(frozen=True, slots=True)
class Calls:
    """``python``: calls of pllm's functions, generated ones such as a dataclass's too, and returns into its
    generators. ``native``: calls of functions written in C that pllm's own lines make. What other packages call
    among themselves is theirs, and differs from version to version."""

    python: int
    native: int


def count_calls(work: Callable[[], object]) -> Calls:
    """Of one call of ``work``, in this thread."""
    python = native = 0

    def see(frame: FrameType, event: str, _: Any) -> None:
        nonlocal python, native
        module = frame.f_globals.get("__name__", "")
        if not module.startswith("pllm.") or module.startswith(_COUNTING):
            return
        if event == "call":
            python += frame.f_code.co_name not in _INLINED
        elif event == "c_call":
            native += 1

    before = sys.getprofile()
    sys.setprofile(see)
    try:
        work()
    finally:
        sys.setprofile(before)
    return Calls(python, native)


@contextmanager
def counted_calls(owner: type, *names: str) -> Iterator[list[str]]:
    """While the block runs, every call of these methods adds their name to the list; for a process that only counts."""
    called: list[str] = []
    before = {name: getattr(owner, name) for name in names}

    def counting(name: str, method: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(method)
        def call(*arguments: Any, **options: Any) -> Any:
            called.append(name)
            return method(*arguments, **options)

        return call

    for name, method in before.items():
        setattr(owner, name, counting(name, method))
    try:
        yield called
    finally:
        for name, method in before.items():
            setattr(owner, name, method)

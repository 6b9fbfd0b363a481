"""These tests need TRITON_INTERPRET=1 from the process's start: `test_interpreted.py` beside runs them in one of their
own, and nothing else collects them."""

import os
from typing import Any

import triton

INTERPRETING = os.environ.get("TRITON_INTERPRET") == "1"
collect_ignore_glob = [] if INTERPRETING else ["test_*.py"]


def take_bounds_from_arrays() -> None:
    """Triton 3.6 makes a loop's bound, an array of one element, an int in a way that numpy 2.5 refuses: do it as 3.7
    does."""
    from triton.runtime import interpreter

    patch_tensor = interpreter._patch_lang_tensor

    def patch(tensor: Any, scope: Any) -> None:
        patch_tensor(tensor, scope)
        scope.set_attr(tensor, "__index__", lambda self: self.handle.data.item())

    interpreter._patch_lang_tensor = patch


if INTERPRETING and triton.__version__.startswith("3.6."):
    take_bounds_from_arrays()

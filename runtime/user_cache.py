"""The one folder that pllm keeps in a user's home: built artifacts, generated checkpoints, remembered hashes."""

import os
from pathlib import Path

__all__ = ["user_cache"]


def user_cache() -> Path:
    """``$PLLM_CACHE``, else ``$XDG_CACHE_HOME/pllm``, else ``~/.cache/pllm``. It may not exist yet."""
    chosen = os.environ.get("PLLM_CACHE")
    if chosen:
        return Path(chosen)
    shared = os.environ.get("XDG_CACHE_HOME")
    return (Path(shared) if shared else Path.home() / ".cache") / "pllm"

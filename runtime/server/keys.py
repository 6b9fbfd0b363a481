"""The operator's API keys: from flags and a file, or else from the environment."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from pllm.runtime.errors import UserInputError

__all__ = ["ENVIRONMENT", "api_keys"]

ENVIRONMENT = "PLLM_API_KEY"


def api_keys(given: Sequence[str], file: str | None, environment: Mapping[str, str]) -> tuple[str, ...]:
    """All keys that open the server. The environment counts only where neither a flag nor a file is given.

    A file has one key a line; empty lines and those that begin with # are left out. Raises UserInputError: a file
    that cannot be read or holds no key, or a key that no header can carry, would leave a server open or shut.
    """
    keys = list(given)
    if file is not None:
        keys += _keys_of_file(Path(file))
    if not keys and file is None:
        keys = environment.get(ENVIRONMENT, "").split()
    for key in keys:
        if not key or any(sign.isspace() for sign in key):
            raise UserInputError("An API key cannot be empty or hold white space.")
    return tuple(dict.fromkeys(keys))


def _keys_of_file(path: Path) -> list[str]:
    try:
        lines = [line.strip() for line in path.read_text().splitlines()]
    except (OSError, UnicodeError) as error:
        raise UserInputError(f"--api-key-file {path}: {getattr(error, 'strerror', None) or 'not UTF-8'}.") from None
    keys = [line for line in lines if line and not line.startswith("#")]
    if not keys:
        raise UserInputError(f"--api-key-file {path}: it holds no key.")
    return keys

"""``--config FILE``: a TOML file whose keys are flags."""

import argparse
import tomllib
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from pllm.runtime.errors import UserInputError

__all__ = ["flags_of_file"]

_OURS = frozenset({"help", "config"})


def flags_of_file(parser: argparse.ArgumentParser, path: Path) -> dict[str, Any]:
    """The file's values by the names of ``parser``'s arguments, checked as the command line is.

    A flag's name is written with dashes or underscores; a switch is true or false; a flag that takes several values
    takes a list. Raises UserInputError with all mistakes at once.
    """
    try:
        table = tomllib.loads(path.read_text())
    except (OSError, UnicodeError) as error:
        raise UserInputError(f"--config {path}: {getattr(error, 'strerror', None) or 'it is not UTF-8'}.") from None
    except tomllib.TOMLDecodeError as error:
        raise UserInputError(f"--config {path}: {error}.") from None
    actions = {action.dest: action for action in parser._actions if action.dest not in _OURS}
    flags: dict[str, Any] = {}
    mistakes: list[str] = []
    for name, value in table.items():
        dest = name.replace("-", "_")
        if dest not in actions:
            near = get_close_matches(dest, actions, n=1)
            hint = f"; did you mean {near[0].replace('_', '-')}?" if near else ""
            mistakes.append(f"{name}: no such flag{hint}")
            continue
        try:
            flags[dest] = _checked(actions[dest], value)
        except (argparse.ArgumentTypeError, ValueError) as error:
            mistakes.append(f"{name}: {error}")
    if mistakes:
        raise UserInputError(f"--config {path}: " + "; ".join(mistakes) + ".")
    return flags


def _checked(action: argparse.Action, value: Any) -> Any:
    if action.nargs == 0:  # a switch
        if not isinstance(value, bool):
            raise ValueError("must be true or false")
        return value
    if action.nargs == "+":
        return [_single(action, item) for item in (value if isinstance(value, list) else [value])]
    return _single(action, value)


def _single(action: argparse.Action, value: Any) -> Any:
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise ValueError("must be a string or a number")
    text = str(value)
    checked = action.type(text) if callable(action.type) else text
    if action.choices is not None and checked not in action.choices:
        raise ValueError(f"must be one of {', '.join(map(str, action.choices))}")
    return checked

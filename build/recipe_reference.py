"""Texts made from the recipe's schema: the reference page and the recipe that ``pllm init`` writes.

``python -m pllm.build.recipe_reference > recipes/README.md`` makes the page; a test holds it to the schema.
"""

import sys
import textwrap
from dataclasses import MISSING, Field, fields
from typing import Any

from pllm.build.recipe_sections import SECTIONS, key_of
from pllm.build.toml_text import toml_text

__all__ = ["recipe_text", "reference_page"]

_WIDTH = 100
_COLUMNS = "| key | takes | default | meaning |\n| --- | --- | --- | --- |\n"

_HEAD = """\
# Recipes

A recipe is a TOML file that says what `pllm build` makes. Everything but `model.source` may be left out.

    pllm build recipes/quickstart.toml
    pllm build recipes/quickstart.toml --set engine.max_num_seqs=8      # a key, decided on the command line
    pllm build Qwen/Qwen3-0.6B                                          # no recipe: the defaults
    pllm init Qwen/Qwen3-0.6B                                           # a commented recipe, to begin from

Unknown keys, wrong types and values out of range are refused, all at once, before anything is loaded. The artifact
keeps the recipe with every value decided as `recipe.lock.toml`.

This page is made from the schema (`python -m pllm.build.recipe_reference > recipes/README.md`).

## Top of the file

{columns}| `name` | a string | the file's name | The artifact's name: letters, digits, `.`, `_`, `-`. |
"""


def reference_page() -> str:
    """Markdown: a table for each section with what each key takes, its default and its meaning."""
    parts = [_HEAD.replace("{columns}", _COLUMNS)]
    for section, kind in SECTIONS.items():
        parts.append(f"\n## `[{section}]`\n\n{kind.__doc__}\n\n{_COLUMNS}")
        for item in fields(kind):
            key = key_of(item)
            parts.append(f"| `{item.name}` | {key.value.describe()} | {_default(item)} | {key.doc} |\n")
    return "".join(parts)


def recipe_text(source: str) -> str:
    """A recipe for ``source`` in which every other key stands at its default, commented out under its meaning."""
    lines = ["# pllm build THIS_FILE. Keys that are commented out stand at their defaults.", ""]
    for section, kind in SECTIONS.items():
        lines += [f"[{section}]"]
        for item in fields(kind):
            lines += textwrap.wrap(key_of(item).doc, _WIDTH, initial_indent="# ", subsequent_indent="# ")
            if (section, item.name) == ("model", "source"):
                lines += [toml_text({"source": source}).rstrip(), ""]
            else:
                lines += [f"#{_example(item)}", ""]
    return "\n".join(lines)


def _default(item: "Field[Any]") -> str:
    if item.default is MISSING:
        return "" if item.default_factory is not MISSING else "required"
    return "" if item.default is None else f"`{toml_text({'x': item.default}).strip().removeprefix('x = ')}`"


def _example(item: "Field[Any]") -> str:
    """The key as TOML: at its default, or at an example where it has none."""
    if item.default_factory is not MISSING:
        return f"{item.name} = {{}}"
    example = key_of(item).example if item.default is None else item.default
    return toml_text({item.name: example}).strip()


if __name__ == "__main__":
    sys.stdout.write(reference_page())

"""Pins: what the counts are known to be, in a file that people read and commit. A count that is another is a change.

``python -P -m pllm.runtime.gate.pins FILE ARTIFACT`` counts and compares exactly; ``--update`` writes the file anew. In
place of the artifact ``-`` reads counts from standard input.

Most counts are the same with every Python, torch and compiler. Those that are not stand in a section of their own for
each set of versions that somebody has pinned; where nobody has, they are not compared, and that is said.
"""

import argparse
import json
import re
import subprocess
import sys
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import msgspec
from rich.console import Console
from rich.table import Table

from pllm.runtime.artifact import Artifact
from pllm.runtime.errors import PllmError, UserInputError
from pllm.runtime.gate.check import Check, Verdict, verdict_of
from pllm.runtime.gate.counts import Counts, count_artifact, is_list, shown
from pllm.runtime.manifest import Manifest

__all__ = ["Pins", "check_pins", "sizes", "software"]

ANY = "any versions"
_DEPEND = {
    "graph nodes": ("torch", "transformers"),
    "kernels": ("torch", "transformers"),
    "allocations": ("python", "numpy", "torch"),
    "operators of torch": ("torch",),
    "copies by torch": ("torch",),
    "bytes of the tokenizer": ("transformers",),
    "bytes of the operators": ("g++",),
    "bytes of the programs": ("g++", "torch", "transformers", "vectors"),
}
"""By how a count's name begins: the software whose versions decide it. All others are the same everywhere."""
_NOT_PINNED = "modules in all"
"""They are mostly other packages'. Two sides of a gate share them, two machines do not."""

_HEAD = """\
# What does not change unless somebody changes it: `make counts` compares exactly, `make counts-pin` writes this file.
# A count that rose is a cost, to be mended or to be argued for in the change that raises it; one that fell is pinned so
# that it stays.
"""


@dataclass(frozen=True, slots=True)
class Pins:
    """``sections``: counts by the versions that decide them."""

    sections: Mapping[str, Counts]

    @classmethod
    def read(cls, path: Path) -> "Pins":
        """None at all where there is no file. Raises UserInputError for one that is malformed."""
        if not path.exists():
            return cls({})
        try:
            document = tomllib.loads(path.read_text(encoding="utf-8"))
            sections = msgspec.convert(document, dict[str, dict[str, int | str | list[str]]])
        except (tomllib.TOMLDecodeError, msgspec.ValidationError) as error:
            raise UserInputError(f"{path} is malformed: {error}; write it anew with --update") from None
        return cls({name: {each: _packed(count) for each, count in part.items()} for name, part in sections.items()})

    def with_counts(self, counts: Counts, versions: Mapping[str, str]) -> "Pins":
        """The sections of these versions anew, the others as they are."""
        return Pins({**self.sections, **_by_section(counts, versions)})

    def text(self) -> str:
        """The file's content: the same pins, the same bytes."""
        lines = [_HEAD]
        for section in sorted(self.sections, key=lambda name: (name != ANY, name)):
            lines.append(f"[{json.dumps(section)}]")
            lines += [f"{json.dumps(name)} = {_value(name, count)}" for name, count in self.sections[section].items()]
            lines.append("")
        return "\n".join(lines)


def check_pins(pins: Pins, counts: Counts, versions: Mapping[str, str]) -> tuple[list[Check], list[str]]:
    """A check for each count that is pinned for these versions, or should be; and the sections that nobody has pinned.

    Any difference is a regression here: a count that fell would otherwise be free to rise again.
    """
    checks: list[Check] = []
    missing: list[str] = []
    for section, counted in _by_section(counts, versions).items():
        if section not in pins.sections:
            missing.append(section)
            continue
        pinned = pins.sections[section]
        checks += [_check(name, pinned.get(name), counted.get(name)) for name in dict.fromkeys([*pinned, *counted])]
    return checks, missing


def software(manifest: Manifest | None) -> dict[str, str]:
    """The versions that decide counts: the artifact's, where it was built with one, else those that are installed."""
    vectors = "avx512" if manifest is not None and "avx512f" in manifest.requires.isa else "avx2"
    return {
        "python": f"{sys.version_info.major}.{sys.version_info.minor}",
        "numpy": ".".join(version("numpy").split(".")[:2]),
        "torch": version("torch").split("+")[0] if manifest is None else manifest.provenance.torch,
        "transformers": version("transformers") if manifest is None else manifest.provenance.transformers,
        "g++": _compiler_version(),
        "vectors": vectors,
    }


def sizes(manifest: Manifest) -> Counts:
    """Bytes of what an artifact holds, but for what was measured, which differs from build to build."""
    parts = {
        "the weights": manifest.weights.files,
        "the tokenizer": manifest.tokenizer,
        "the operators": manifest.operators,
        "the programs": [program.file for program in manifest.programs],
    }
    return {f"bytes of {name}": sum(manifest.files[file].size for file in files) for name, files in parts.items()}


def _by_section(counts: Counts, versions: Mapping[str, str]) -> dict[str, Counts]:
    sections: dict[str, Counts] = {}
    for name, count in counts.items():
        if not name.startswith(_NOT_PINNED):
            depends = next((each for begin, each in _DEPEND.items() if name.startswith(begin)), ())
            section = ", ".join(f"{each} {versions[each]}" for each in depends) or ANY
            sections.setdefault(section, {})[name] = count
    return sections


def _check(name: str, pinned: int | str | None, counted: int | str | None) -> Check:
    seen = shown(name, pinned), shown(name, counted)
    if pinned == counted:
        return Check(name, *seen, Verdict.PASS, "as pinned")
    if pinned is None or counted is None:
        return Check(name, *seen, Verdict.REGRESSION, "not pinned" if pinned is None else "no longer counted")
    if is_list(name):
        before, after = set(str(pinned).split()), set(str(counted).split())
        told = [f"new: {each}" for each in sorted(after - before)] + [
            f"gone: {each}" for each in sorted(before - after)
        ]
        return Check(name, *seen, Verdict.REGRESSION, ", ".join(told))
    reason = "another" if isinstance(pinned, str) or isinstance(counted, str) else f"{counted - pinned:+,}"
    return Check(name, *seen, Verdict.REGRESSION, reason)


def _packed(count: int | str | list[str]) -> int | str:
    return " ".join(count) if isinstance(count, list) else count


def _value(name: str, count: int | str) -> str:
    if not is_list(name):
        return json.dumps(count)
    return "\n".join(["[", *(f"    {json.dumps(word)}," for word in str(count).split()), "]"])


def _compiler_version() -> str:
    try:
        said = subprocess.run(["g++", "-dumpfullversion"], capture_output=True, text=True, check=False).stdout  # noqa: S607
    except OSError:
        return "absent"
    return said.strip() if re.fullmatch(r"[\d.]+", said.strip()) else "unknown"


def _main() -> int:
    parser = argparse.ArgumentParser(prog="python -P -m pllm.runtime.gate.pins", description=__doc__)
    parser.add_argument("pins", type=Path, metavar="FILE")
    parser.add_argument("source", metavar="ARTIFACT|-")
    parser.add_argument("--update", action="store_true")
    arguments = parser.parse_args()
    console = Console(highlight=False, soft_wrap=True)
    try:
        pins = Pins.read(arguments.pins)
        if arguments.source == "-":
            counts, versions = msgspec.json.decode(sys.stdin.buffer.read(), type=Counts), software(None)
        else:
            artifact = Artifact.read(arguments.source)
            counts, versions = (
                count_artifact(artifact.directory) | sizes(artifact.manifest),
                software(artifact.manifest),
            )
    except (PllmError, msgspec.DecodeError) as error:
        print(f"pins: error: {error}", file=sys.stderr)
        return error.exit_code if isinstance(error, PllmError) else 2
    if arguments.update:
        pins = pins.with_counts(counts, versions)
        arguments.pins.write_text(pins.text(), encoding="utf-8")
    checks, missing = check_pins(pins, counts, versions)
    changed = [check for check in checks if check.verdict is not Verdict.PASS]
    if changed:
        console.print(_table(changed))
    console.print(f"{arguments.pins}: {len(checks) - len(changed)} counts are as pinned, {len(changed)} are not")
    for section in missing:
        console.print(f"not compared, since nobody has pinned them for {section}: make counts-pin adds them")
    return verdict_of(checks).exit_code


def _table(checks: list[Check]) -> Table:
    table = Table("count", "pinned", "here", "")
    for check in checks:
        table.add_row(check.name, *(str(each) for each in (check.base, check.new)), check.reason)
    return table


if __name__ == "__main__":
    sys.exit(_main())

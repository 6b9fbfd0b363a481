"""The history: what was measured, a line a measurement, each under the machine that it was measured on.

``history.jsonl`` grows by whole lines. The documents are those that ``pllm bench`` and ``pllm gate`` write with
``--json``; of a distribution its median is kept. Figures of one machine are a trend, of two they are none.
"""

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from pllm.runtime.errors import UserInputError
from pllm.runtime.user_cache import user_cache

__all__ = ["Entry", "Trend", "default_history", "entry_of", "fingerprint", "read_history", "trends", "write_entry"]

_IDENTITY = ("cpu", "cores", "features", "memory_bytes")


class Entry(msgspec.Struct, frozen=True):
    """One measurement. ``machine`` is the fingerprint, ``cpu`` for people; values are seconds, bytes, or rates."""

    machine: str
    cpu: str
    date: str
    measurement: str
    subject: str
    versions: dict[str, str]
    values: dict[str, float]


@dataclass(frozen=True, slots=True)
class Trend:
    """One value of one subject on one machine, oldest first."""

    machine: str
    cpu: str
    measurement: str
    subject: str
    name: str
    dates: tuple[str, ...]
    values: tuple[float, ...]

    @property
    def change(self) -> float | None:
        """The last over the first; None where the first is zero."""
        return self.values[-1] / self.values[0] if self.values[0] else None


def default_history() -> Path:
    """In the user's cache folder."""
    return user_cache() / "history.jsonl"


def fingerprint(machine: Mapping[str, Any]) -> str:
    """Of a report's machine: its processor, cores, instruction sets and memory; not its software, which is what a trend
    may show."""
    return hashlib.sha256(msgspec.json.encode([machine.get(name) for name in _IDENTITY])).hexdigest()[:12]


def entry_of(path: Path) -> Entry:
    """A document of ``pllm bench`` or ``pllm gate``. Raises UserInputError for a file that is none."""
    try:
        document: Any = msgspec.json.decode(path.read_bytes())
        machine, measurement = document["machine"], document["measurement"]
        values = _gate_values(document) if measurement == "gate" else _leaves(document["results"])
        return Entry(
            machine=fingerprint(machine),
            cpu=str(machine.get("cpu", "")),
            date=str(document["date"]),
            measurement=measurement,
            subject=_subject(document),
            versions=dict(machine.get("versions", {})),
            values=values,
        )
    except OSError as error:
        raise UserInputError(f"{path} cannot be read: {error.strerror}") from None
    except (msgspec.DecodeError, KeyError, TypeError, AttributeError) as error:
        raise UserInputError(
            f"{path} is no report of pllm bench or pllm gate (--json FILE writes one): {error}"
        ) from None


def write_entry(history: Path, entry: Entry) -> bool:
    """Append; False where the same measurement is there already. Raises UserInputError as `read_history`."""
    if entry in read_history(history):
        return False
    history.parent.mkdir(parents=True, exist_ok=True)
    with history.open("ab") as file:
        file.write(msgspec.json.encode(entry) + b"\n")
    return True


def read_history(history: Path) -> list[Entry]:
    """All entries, none where there is no file. Raises UserInputError, naming the line, where one is malformed."""
    if not history.is_file():
        return []
    entries = []
    for number, line in enumerate(history.read_bytes().splitlines(), 1):
        try:
            entries.append(msgspec.json.decode(line, type=Entry))
        except msgspec.DecodeError as error:
            raise UserInputError(f"{history}, line {number} is malformed: {error}; remove it") from None
    return entries


def trends(entries: Iterable[Entry]) -> Iterator[Trend]:
    """Every value that was measured, by machine, measurement and subject."""
    found: dict[tuple[str, str, str, str], list[Entry]] = {}
    for entry in sorted(entries, key=lambda each: each.date):
        for name in entry.values:
            found.setdefault((entry.machine, entry.measurement, entry.subject, name), []).append(entry)
    for (machine, measurement, subject, name), each in sorted(found.items()):
        dates, values = tuple(one.date for one in each), tuple(one.values[name] for one in each)
        yield Trend(machine, each[-1].cpu, measurement, subject, name, dates, values)


def _gate_values(document: Mapping[str, Any]) -> dict[str, float]:
    """The new side's: costs in seconds and bytes; of other checks their numbers, in the unit of each."""
    values = {each["name"]: float(each["new"]) for each in document["timings"]}
    counts = {each["name"]: each["new"] for each in document["checks"] if each["name"] not in values}
    return values | {name: float(count) for name, count in counts.items() if isinstance(count, (int, float))}


def _subject(document: Mapping[str, Any]) -> str:
    if "subject" in document:
        return str(document["subject"].get("name", "server"))
    return str(list(document["sides"])[-1]) if document["sides"] else "benchmarks"


def _leaves(results: Mapping[str, Any], prefix: str = "") -> dict[str, float]:
    values: dict[str, float] = {}
    for name, value in results.items():
        if isinstance(value, Mapping):
            middle = value.get("p50")
            values |= {prefix + name: float(middle)} if middle is not None else _leaves(value, f"{prefix}{name}.")
        elif isinstance(value, (int, float)) and not isinstance(value, bool):
            values[prefix + name] = float(value)
    return values

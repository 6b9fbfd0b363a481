"""Processes as Linux accounts for them: how old they are and what memory they hold, all of it read from ``/proc``."""

import os
import time
from dataclasses import dataclass
from pathlib import Path

__all__ = ["ProcessMemory", "process_age", "process_tree"]

_PROC = Path("/proc")


def process_age(pid: int | None = None) -> float:
    """Seconds since the process (default: this one) began, as the kernel counts it.

    It begins with its fork; the exec follows within a millisecond or two. The kernel gives the beginning in ticks
    (10 ms as a rule), rounded down, so an age may be too great by as much as one.
    """
    fields = _stat("self" if pid is None else str(pid))
    ticks = int(fields[19])
    return time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / os.sysconf("SC_CLK_TCK")


def process_tree(pid: int) -> list[int]:
    """The process and all that descend from it, at this moment."""
    children: dict[int, list[int]] = {}
    for entry in _PROC.iterdir():
        if entry.name.isdigit():
            try:
                parent = int(_stat(entry.name)[1])
            except OSError:  # it has ended meanwhile
                continue
            children.setdefault(parent, []).append(int(entry.name))
    tree = [pid]
    for member in tree:  # which grows while it is walked
        tree += children.get(member, [])
    return tree


@dataclass(frozen=True, slots=True)
class ProcessMemory:
    """Bytes that processes hold together.

    ``peak_rss`` adds up each process's own peak (``VmHWM``), mapped weights included: pages that they share are counted
    in each, and the peaks need not fall together, so it is a bound from above. ``pss`` is of the moment: a page that n
    processes map counts 1/n in each. None where the kernel does not tell.
    """

    peak_rss: int
    pss: int | None

    @classmethod
    def of_this(cls) -> "ProcessMemory":
        """Of this process."""
        return cls.of(os.getpid())

    @classmethod
    def of(cls, *pids: int) -> "ProcessMemory":
        """Of the given processes. Raises OSError where one has ended."""
        peak = sum(_kibibytes(_PROC / str(pid) / "status", "VmHWM") for pid in pids)
        try:
            pss = sum(_kibibytes(_PROC / str(pid) / "smaps_rollup", "Pss") for pid in pids)
        except OSError:
            return cls(peak << 10, None)
        return cls(peak << 10, pss << 10)


def _stat(pid: str) -> list[str]:
    """The fields of ``/proc/PID/stat`` after the command, which may hold spaces and brackets of its own."""
    return (_PROC / pid / "stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()


def _kibibytes(path: Path, field: str) -> int:
    for line in path.read_text(encoding="ascii", errors="replace").splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1])
    raise OSError(f"{path} does not say {field}")

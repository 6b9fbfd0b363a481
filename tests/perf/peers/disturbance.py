"""How much of the cores others took while a trial ran: with company, a measurement says more of the company."""

import os
import resource
import time
from dataclasses import dataclass
from pathlib import Path

__all__ = ["CpuAccount"]


@dataclass(frozen=True, slots=True)
class CpuAccount:
    """CPU seconds up to a moment: ``busy`` of everybody on the cores that this process may use (stolen time included),
    ``ours`` of this process and of all descendants that have ended."""

    when: float
    busy: float
    ours: float
    cores: int

    @classmethod
    def now(cls) -> "CpuAccount":
        cores = os.sched_getaffinity(0)
        ticks = 0
        for line in Path("/proc/stat").read_text(encoding="ascii").splitlines():
            name, *values = line.split()
            if name[:3] == "cpu" and name[3:].isdigit() and int(name[3:]) in cores:
                user, nice, system, _idle, _iowait, irq, softirq, steal = map(int, values[:8])
                ticks += user + nice + system + irq + softirq + steal
        used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
        ours = sum(usage.ru_utime + usage.ru_stime for usage in used)
        return cls(time.monotonic(), ticks / os.sysconf("SC_CLK_TCK"), ours, len(cores))

    def others_since(self, earlier: "CpuAccount") -> float:
        """The share of all cores' time that was taken by others, 0 to 1."""
        others = (self.busy - earlier.busy) - (self.ours - earlier.ours)
        return min(1.0, max(0.0, others / ((self.when - earlier.when) * self.cores)))

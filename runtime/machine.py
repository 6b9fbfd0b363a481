"""What this machine is: its instruction set, its C library, its torch, and the memory and cores left to this process.

Everything is read from ``/proc``, ``/sys/fs/cgroup`` and installed files: nothing is imported, so that a mismatch is
found in milliseconds and before native code of any kind is loaded. A GPU is asked for only where it matters.
"""

import os
import re
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from pllm.runtime.gpu import Gpu, find_gpu

__all__ = [
    "Machine",
    "available_memory",
    "cpu_count",
    "cpu_features",
    "cpu_name",
    "glibc_version",
    "thread_counts",
    "torch_cuda_version",
    "torch_version",
]

_ROOT = Path("/")


@dataclass(frozen=True, slots=True)
class Machine:
    """The facts that decide whether an artifact can run here."""

    architecture: str
    """As ``uname -m`` says it: ``x86_64``."""
    features: frozenset[str]
    """CPU flags by the names of ``/proc/cpuinfo``: ``avx2``, ``avx512f``, ..."""
    glibc: str
    """``2.36``; empty where the C library is another."""
    torch: str
    """The installed torch without its local part (``2.13.0``); empty where there is none."""
    torch_cuda: str = ""
    """The CUDA that it was built with (``13.0``); empty for a build without."""
    gpu: Gpu | None = None
    """Known where it was asked for."""

    @classmethod
    def this(cls, device: str = "cpu") -> "Machine":
        """This machine; with ``cuda``, its GPU too, which takes a few tenths of a second."""
        gpu = find_gpu() if device == "cuda" else None
        return cls(os.uname().machine, cpu_features(), glibc_version(), torch_version(), torch_cuda_version(), gpu)


def cpu_features(root: Path = _ROOT) -> frozenset[str]:
    """The flags of the first processor in ``/proc/cpuinfo``; empty where it cannot be read."""
    try:
        with (root / "proc/cpuinfo").open(encoding="utf-8", errors="replace") as lines:
            for line in lines:
                name, _, value = line.partition(":")
                if name.strip() in ("flags", "Features"):
                    return frozenset(value.split())
    except OSError:
        pass
    return frozenset()


def cpu_name(root: Path = _ROOT) -> str:
    """What ``/proc/cpuinfo`` calls the first processor's model; the architecture where it does not say."""
    try:
        with (root / "proc/cpuinfo").open(encoding="utf-8", errors="replace") as lines:
            for line in lines:
                name, _, value = line.partition(":")
                if name.strip() == "model name":
                    return value.strip()
    except OSError:
        pass
    return os.uname().machine


def glibc_version() -> str:
    try:
        name, _, version = (os.confstr("CS_GNU_LIBC_VERSION") or "").partition(" ")
    except (ValueError, OSError):
        return ""
    return version if name == "glibc" else ""


def torch_version() -> str:
    """The installed torch's public version, read from its ``version.py``: importing torch takes two seconds and
    ``importlib.metadata`` twenty milliseconds."""
    return _said_of_torch(r"^__version__\s*=\s*['\"]([^'\"+]+)")


def torch_cuda_version() -> str:
    """The CUDA that the installed torch was built with, from the same file; empty for a build without."""
    return _said_of_torch(r"^cuda\b[^=]*=\s*['\"]([^'\"]+)")


def _said_of_torch(pattern: str) -> str:
    found = find_spec("torch")
    if found is None or found.origin is None:
        return ""
    try:
        text = (Path(found.origin).parent / "version.py").read_text(encoding="utf-8")
    except OSError:
        return ""
    match = re.search(pattern, text, re.MULTILINE)
    return match.group(1) if match else ""


def available_memory(root: Path = _ROOT) -> int:
    """Bytes this process may still take without swapping: the smaller of what the kernel calls available and what the
    memory limits of its control groups (v2, or v1) leave. Page cache that the kernel would give back counts as free."""
    left = _available_to_the_machine(root)
    for group in _control_groups(root, "memory"):
        limit = _number(group / "memory.max") or _number(group / "memory.limit_in_bytes")
        used = _number(group / "memory.current") or _number(group / "memory.usage_in_bytes")
        if limit is not None and used is not None:
            left = min(left, max(0, limit - used + _reclaimable(group)))
    return left


def cpu_count(root: Path = _ROOT) -> int:
    """Cores this process may use: its affinity mask, cut to the CPU quota of its control groups; at least 1."""
    count = float(len(os.sched_getaffinity(0)))
    for group in _control_groups(root, "cpu"):
        quota = _cpu_quota(group)
        if quota is not None:
            count = min(count, quota)
    return max(1, int(count))


def thread_counts(root: Path = _ROOT) -> tuple[int, ...]:
    """What may be the best number of threads here, the likeliest first: the cores this process may use; as many as have
    an arithmetic unit of their own, where two share one; and half of them, where memory is what they wait for."""
    cores = cpu_count(root)
    siblings = set()
    for cpu in os.sched_getaffinity(0):
        file = root / f"sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list"
        try:
            siblings.add(file.read_text(encoding="ascii").strip())
        except OSError:
            return (cores,)
    return tuple(dict.fromkeys((cores, min(cores, len(siblings)), max(1, cores // 2) if cores >= 4 else cores)))


def _available_to_the_machine(root: Path) -> int:
    with (root / "proc/meminfo").open(encoding="ascii") as lines:
        for line in lines:
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    raise OSError("/proc/meminfo does not say MemAvailable")


def _control_groups(root: Path, controller: str) -> list[Path]:
    """The folders of this process's control group and of all its ancestors: each may hold a limit."""
    try:
        lines = (root / "proc/self/cgroup").read_text(encoding="utf-8").splitlines()
    except OSError:
        return []
    folders: list[Path] = []
    for line in lines:
        _, controllers, path = [*line.split(":", 2), "", ""][:3]
        if controllers and controller not in controllers.split(","):
            continue
        mount = root / "sys/fs/cgroup" / (controllers and controller)
        inside = Path(path.lstrip("/"))
        # In a container the path may be the host's; the mount itself is then this process's group.
        folders += [mount / part for part in (inside, *inside.parents) if ".." not in part.parts]
    return [folder for folder in dict.fromkeys(folders) if folder.is_dir()]


def _reclaimable(group: Path) -> int:
    try:
        stat = (group / "memory.stat").read_text(encoding="ascii")
    except (OSError, UnicodeDecodeError):
        return 0
    match = re.search(r"^(?:total_)?inactive_file (\d+)$", stat, re.MULTILINE)
    return int(match.group(1)) if match else 0


def _cpu_quota(group: Path) -> float | None:
    try:
        quota, period = (group / "cpu.max").read_text(encoding="ascii").split()[:2]
        return None if quota == "max" else int(quota) / int(period)
    except (OSError, ValueError):
        pass
    old_quota, old_period = _number(group / "cpu.cfs_quota_us"), _number(group / "cpu.cfs_period_us")
    return old_quota / old_period if old_quota and old_period else None


def _number(path: Path) -> int | None:
    """The file's only number; None for ``max``, ``-1`` and files that are not there."""
    try:
        value = int(path.read_text(encoding="ascii"))
    except (OSError, ValueError):
        return None
    return value if value >= 0 else None

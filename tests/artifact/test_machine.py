"""What the machine is, read from copies of its files."""

import os
from importlib import metadata
from pathlib import Path

import pytest

from pllm.runtime.machine import Machine, available_memory, cpu_count, cpu_features, thread_counts


def lay(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


MEMINFO = {"proc/meminfo": "MemTotal: 64000 kB\nMemFree: 100 kB\nMemAvailable: 32000 kB\n"}


def test_without_control_groups_memory_is_what_the_kernel_calls_available(tmp_path: Path) -> None:
    assert available_memory(lay(tmp_path, MEMINFO)) == 32000 * 1024


@pytest.mark.parametrize("group", ["/user/job", "/", "/not/mounted/here"])
def test_the_tightest_control_group_counts_and_its_file_cache_is_free(tmp_path: Path, group: str) -> None:
    files = MEMINFO | {
        "proc/self/cgroup": f"0::{group}\n",
        "sys/fs/cgroup/memory.max": "20000000",
        "sys/fs/cgroup/memory.current": "15000000",
        "sys/fs/cgroup/memory.stat": "anon 7\ninactive_file 3000000\nslab 9\n",
        "sys/fs/cgroup/user/job/memory.max": "max",
        "sys/fs/cgroup/user/job/memory.current": "1",
    }
    assert available_memory(lay(tmp_path, files)) == 8_000_000


def test_control_groups_of_version_one(tmp_path: Path) -> None:
    files = MEMINFO | {
        "proc/self/cgroup": "5:memory:/job\n4:cpu,cpuacct:/job\n",
        "sys/fs/cgroup/memory/job/memory.limit_in_bytes": "9000000",
        "sys/fs/cgroup/memory/job/memory.usage_in_bytes": "4000000",
    }
    assert available_memory(lay(tmp_path, files)) == 5_000_000


def test_a_limit_that_is_used_up_leaves_nothing(tmp_path: Path) -> None:
    files = MEMINFO | {
        "proc/self/cgroup": "0::/\n",
        "sys/fs/cgroup/memory.max": "1000",
        "sys/fs/cgroup/memory.current": "2000",
    }
    assert available_memory(lay(tmp_path, files)) == 0


def test_the_cpu_quota_cuts_the_affinity_mask(tmp_path: Path) -> None:
    cores = len(os.sched_getaffinity(0))
    files = {"proc/self/cgroup": "0::/\n"}
    assert cpu_count(lay(tmp_path, files)) == cores
    assert cpu_count(lay(tmp_path, files | {"sys/fs/cgroup/cpu.max": "max 100000"})) == cores
    assert cpu_count(lay(tmp_path, files | {"sys/fs/cgroup/cpu.max": "100000 100000"})) == 1
    assert cpu_count(lay(tmp_path, files | {"sys/fs/cgroup/cpu.max": "5000 100000"})) == 1


def test_threads_that_share_a_core_are_tried_as_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1, 2, 3})
    place = "sys/devices/system/cpu/cpu{}/topology/thread_siblings_list".format
    files = {"proc/self/cgroup": "0::/\n"}
    assert thread_counts(lay(tmp_path, files)) == (4,)  # nothing is known
    assert thread_counts(lay(tmp_path, files | {place(cpu): f"{cpu}\n" for cpu in range(4)})) == (4, 2)
    assert thread_counts(lay(tmp_path, {place(cpu): f"{cpu % 2},{cpu % 2 + 2}\n" for cpu in range(4)})) == (4, 2)
    assert thread_counts(lay(tmp_path, {"sys/fs/cgroup/cpu.max": "100000 100000"})) == (1,)


def test_features_are_the_first_processor_s(tmp_path: Path) -> None:
    lay(tmp_path, {"proc/cpuinfo": "processor : 0\nflags\t\t: fpu avx2 avx512f\n\nprocessor : 1\nflags : none\n"})
    assert cpu_features(tmp_path) == {"fpu", "avx2", "avx512f"}
    assert cpu_features(tmp_path / "nowhere") == frozenset()


def test_this_machine_has_the_torch_that_is_installed() -> None:
    here = Machine.this()
    assert here.torch == metadata.version("torch").partition("+")[0]
    assert here.architecture == os.uname().machine
    assert available_memory() > 0

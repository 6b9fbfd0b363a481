import subprocess
import sys
import time

import psutil
import pytest

from pllm.runtime.bench.processes import ProcessMemory, process_age, process_tree

SLEEPER = "import subprocess, sys; subprocess.run([sys.executable, '-c', 'print(1, flush=True); input()'])"


def test_an_age_is_counted_from_the_processs_beginning() -> None:
    age = process_age()
    created = psutil.Process().create_time()
    assert age == pytest.approx(time.time() - created, abs=1.0)  # clocks may be set; the order of magnitude may not
    assert process_age() >= age


def test_a_tree_holds_children_and_theirs_and_its_memory_is_summed() -> None:
    with subprocess.Popen([sys.executable, "-c", SLEEPER], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"1\n"
        tree = process_tree(process.pid)
        assert tree[0] == process.pid
        assert sorted(tree[1:]) == sorted(child.pid for child in psutil.Process(process.pid).children(recursive=True))
        assert len(tree) == 2
        whole = ProcessMemory.of(*tree)
        parts = [ProcessMemory.of(pid) for pid in tree]
        assert whole.peak_rss == sum(part.peak_rss for part in parts) > 1 << 20
        assert whole.pss is None or 0 < whole.pss < whole.peak_rss
        process.communicate(b"\n")
    assert process_tree(process.pid) == [process.pid]
    with pytest.raises(OSError, match="No such"):
        ProcessMemory.of(process.pid)

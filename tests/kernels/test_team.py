"""The operators' threads: the same bits however many there are, from several callers at once, and after a fork."""

import os
import threading
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from pllm.kernels.cpu.library import CpuLibrary

ROWS, INPUTS, OUTPUTS = 9, 256, 4096


@pytest.fixture
def problem() -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    rng = np.random.default_rng()
    x = rng.standard_normal((ROWS, INPUTS), np.float32)
    return x, rng.standard_normal((OUTPUTS // 32, INPUTS, 32), np.float32)


def product(library: CpuLibrary, problem: tuple[NDArray[np.float32], NDArray[np.float32]]) -> bytes:
    x, weight = problem
    return library.linear(x, weight, None, OUTPUTS).tobytes()


def helpers() -> int:
    names = [(task / "comm").read_text().strip() for task in Path("/proc/self/task").iterdir()]
    return names.count("pllm-helper")


def test_the_number_of_threads_changes_no_bit(library: CpuLibrary, problem: tuple[NDArray[np.float32], ...]) -> None:
    before = library.num_threads
    found = {}
    try:
        for threads in (1, 2, 5, 3, 1):
            library.set_num_threads(threads)
            found[threads] = {product(library, problem) for _ in range(20)}
    finally:
        library.set_num_threads(before)
    assert len(set.union(*found.values())) == 1


def test_callers_at_once_get_their_own_results(library: CpuLibrary, problem: tuple[NDArray[np.float32], ...]) -> None:
    right = product(library, problem)
    wrong: list[int] = []

    def call(caller: int) -> None:
        if any(product(library, problem) != right for _ in range(50)):
            wrong.append(caller)

    callers = [threading.Thread(target=call, args=(i,)) for i in range(4)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join(timeout=60)
    assert not wrong
    assert not any(caller.is_alive() for caller in callers)


def test_a_forked_child_has_helpers_of_its_own(library: CpuLibrary, problem: tuple[NDArray[np.float32], ...]) -> None:
    right = product(library, problem)
    child = os.fork()
    if not child:
        same = all(product(library, problem) == right for _ in range(20))
        os._exit(0 if same and helpers() == library.num_threads - 1 else 1)
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == 0
    assert product(library, problem) == right

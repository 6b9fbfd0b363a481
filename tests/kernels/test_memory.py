"""Memory that a thread keeps for its next tensors."""

import ctypes
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

SMALL, MOST_TIMES, ALIGNMENT = 512, 4, 64


class Memory:
    """`kernels/cpu/memory.h`, with what is out: where, how much, and what was written there."""

    def __init__(self, library: ctypes.CDLL) -> None:
        self._take, self._give = library.pllm_take_memory, library.pllm_give_memory
        self._take.restype = ctypes.c_void_p
        self._take.argtypes = (ctypes.c_size_t, ctypes.POINTER(ctypes.c_size_t))
        self._give.restype = None
        self._give.argtypes = (ctypes.c_void_p, ctypes.c_size_t)
        self.out: dict[int, tuple[int, int]] = {}

    def take(self, size: int) -> tuple[int, int]:
        taken = ctypes.c_size_t()
        address = self._take(size, ctypes.byref(taken))
        assert address and address % ALIGNMENT == 0
        assert size <= taken.value <= max(SMALL, MOST_TIMES * size + MOST_TIMES)
        mark = len(self.out) % 251
        ctypes.memset(address, mark, taken.value)
        self.out[address] = (taken.value, mark)
        return address, taken.value

    def give(self, address: int) -> None:
        taken, mark = self.out[address]
        assert ctypes.string_at(address, taken) == bytes([mark]) * taken, "somebody else wrote there"
        self.drop(address)

    def drop(self, address: int) -> None:
        """Give without a look at it, which would itself take memory."""
        taken, _ = self.out.pop(address)
        self._give(address, taken)


def in_a_thread(run: Callable[[], None]) -> None:
    """What is kept is the thread's: so each test begins with nothing."""
    with ThreadPoolExecutor(1) as pool:
        pool.submit(run).result()


@pytest.fixture(scope="module")
def memory(built: Path) -> Callable[[], Memory]:
    library = ctypes.CDLL(str(built))
    return lambda: Memory(library)


@settings(deadline=None, max_examples=60)
@given(
    st.lists(
        st.one_of(st.integers(0, 2000), st.integers(2000, 300_000), st.just(-1), st.just(-2)), min_size=1, max_size=400
    )
)
def test_blocks_that_are_out_never_overlap(memory: Callable[[], Memory], sizes: list[int]) -> None:
    """-1 gives the oldest back, -2 the latest. More blocks may be given back than are kept."""

    def run() -> None:
        mine = memory()
        for size in sizes:
            if size >= 0:
                mine.take(size)
            elif mine.out:
                mine.give(list(mine.out)[0 if size == -1 else -1])
        spans = sorted((address, address + taken) for address, (taken, _) in mine.out.items())
        assert all(before[1] <= after[0] for before, after in pairwise(spans))
        for address in list(mine.out):
            mine.give(address)

    in_a_thread(run)


def test_a_step_lives_on_the_blocks_of_the_step_before(memory: Callable[[], Memory]) -> None:
    def run() -> None:
        mine = memory()

        def step(scale: int) -> set[int]:
            held = [mine.take(size * scale)[0] for size in (64, 1000, 200_000, 40_000, 200_000, 5)]
            for address in held:
                mine.give(address)
            return set(held)

        first = step(4)
        assert step(4) == first
        assert step(3) == first  # a step of fewer tokens fits into a larger one's
        assert step(4) == first

    in_a_thread(run)


def test_the_best_fit_is_taken_and_nothing_far_larger(memory: Callable[[], Memory]) -> None:
    def run() -> None:
        mine = memory()
        blocks = {size: mine.take(size)[0] for size in (4096, 8192, 65_536)}
        for address in list(mine.out):
            mine.give(address)
        assert mine.take(5000)[0] == blocks[8192]
        assert mine.take(5000)[0] not in blocks.values()  # one that is left is too small, the other 13 times as large
        assert mine.take(20_000)[0] == blocks[65_536]
        assert mine.take(4000)[0] == blocks[4096]

    in_a_thread(run)


def resident() -> int:
    """Bytes of this process that no file stands behind."""
    status = Path("/proc/self/status").read_text()
    return 1024 * int(next(line for line in status.splitlines() if line.startswith("RssAnon")).split()[1])


def test_sizes_that_rise_leave_no_block_of_each(memory: Callable[[], Memory]) -> None:
    """Of 64 steps the largest has 16 MB, and all together 520."""

    def run() -> None:
        mine, before = memory(), resident()
        for step in range(1, 65):
            mine.drop(mine.take(step << 18)[0])
        assert resident() - before < 40 << 20

    in_a_thread(run)


def test_what_another_thread_took_does_not_pile_up(memory: Callable[[], Memory]) -> None:
    mine, before = memory(), resident()

    def give() -> None:
        for _ in range(64):
            with ThreadPoolExecutor(1) as other:
                address, _ = other.submit(mine.take, 4 << 20).result()
            mine.drop(address)
        assert resident() - before < 40 << 20

    in_a_thread(give)


def test_more_than_there_is(memory: Callable[[], Memory]) -> None:
    mine = memory()
    taken = ctypes.c_size_t()
    for size in (2**64 - 1, 2**62):
        assert mine._take(size, ctypes.byref(taken)) is None
    mine._give(None, 0)

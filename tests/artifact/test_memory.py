"""The memory plan as a formula."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pllm.runtime.errors import DoesNotFitError
from pllm.runtime.memory import MemoryLedger, MemoryPlan, MemorySetting, format_bytes, parse_memory

GIB = 1 << 30
LEDGER = MemoryLedger(weights=2 * GIB, activations=GIB // 4, runtime=GIB // 4, kv_block=1 << 20)


def plan(available: int, memory: MemorySetting = "auto", length: int = 1600, seqs: int = 8) -> MemoryPlan:
    return MemoryPlan.solve(
        LEDGER, block_size=16, max_model_len=length, max_num_seqs=seqs, memory=memory, available=available
    )


def test_plenty_of_memory_gives_what_the_sequences_need_and_no_more() -> None:
    solved = plan(100 * GIB)
    assert solved.num_blocks == solved.wanted_blocks == 8 * 100
    assert solved.notice is None
    assert solved.kv_bytes == 800 << 20
    assert solved.total_bytes == LEDGER.fixed + (800 << 20)


def test_auto_takes_half_of_what_the_fixed_part_leaves() -> None:
    solved = plan(LEDGER.fixed + (600 << 20))
    assert solved.num_blocks == 300
    assert solved.notice is not None
    assert "4800 tokens (300 blocks, 300 MiB)" in solved.notice
    assert "800 blocks" in solved.notice


def test_auto_takes_more_than_half_before_it_refuses_the_one_sequence() -> None:
    assert plan(LEDGER.fixed + (120 << 20)).num_blocks == 100


@pytest.mark.parametrize(
    ("memory", "blocks"),
    [("2.75GiB", 256), (LEDGER.fixed + (200 << 20), 200), ("100GiB", 500), (1.0, 500), (0.9, 194)],
)
def test_a_size_and_a_share_count_everything_the_engine_holds(memory: MemorySetting, blocks: int) -> None:
    assert plan(LEDGER.fixed + (500 << 20), memory).num_blocks == blocks


def test_what_does_not_fit_is_refused_with_need_have_and_the_largest_that_fits() -> None:
    with pytest.raises(DoesNotFitError) as caught:
        plan(LEDGER.fixed + (60 << 20))
    message = str(caught.value)
    assert "needs 2.60 GiB" in message
    assert "has 2.56 GiB" in message
    assert "largest max_model_len that fits is 960" in message
    assert plan(LEDGER.fixed + (60 << 20), length=960).num_blocks == 60
    with pytest.raises(DoesNotFitError):
        plan(LEDGER.fixed + (60 << 20), length=961)


def test_weights_that_do_not_fit_at_all_say_so() -> None:
    with pytest.raises(DoesNotFitError, match="beside the weights: give more memory, or choose a smaller model"):
        plan(GIB)
    with pytest.raises(DoesNotFitError, match=r"more memory, build with a smaller engine\.max_num_batched_tokens, or"):
        plan(LEDGER.fixed)


@given(
    available=st.integers(0, 64 * GIB),
    memory=st.one_of(st.just("auto"), st.integers(2, 64 * GIB), st.floats(0.01, 1.0)),
    length=st.integers(1, 40_000),
    seqs=st.integers(1, 64),
)
def test_a_plan_keeps_its_promises(available: int, memory: MemorySetting, length: int, seqs: int) -> None:
    try:
        solved = plan(available, memory, length, seqs)
    except DoesNotFitError:
        return
    assert solved == plan(available, memory, length, seqs)
    assert -(-length // 16) <= solved.num_blocks <= solved.wanted_blocks
    assert solved.total_bytes <= available
    assert solved.concurrency(length) >= 1
    assert solved.concurrency(1) <= seqs
    assert solved.num_tokens == solved.num_blocks * 16


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("auto", "auto"),
        ("4GiB", 4 * GIB),
        ("4 gib", 4 * GIB),
        ("1.5GB", 1_500_000_000),
        ("900MiB", 900 << 20),
        ("123456", 123456),
        ("0.5", 0.5),
        (0.5, 0.5),
        (1, 1.0),
        (1 << 30, 1 << 30),
    ],
)
def test_memory_settings(text: object, value: object) -> None:
    assert parse_memory(text) == value


@pytest.mark.parametrize("text", ["", "lots", "4 GiBs", "-1GiB", "0", 0, -1, 1.5, float("nan"), True, None, [], "1e9"])
def test_what_is_no_memory_setting(text: object) -> None:
    with pytest.raises(ValueError, match="must be"):
        parse_memory(text)


def test_bytes_are_shown_in_three_figures() -> None:
    sizes = [0, 1023, 1024, 1536, 12 << 20, 999 << 20, 1 << 30, 5 << 40]
    assert [format_bytes(size) for size in sizes] == [
        "0 B", "1023 B", "1.00 KiB", "1.50 KiB", "12.0 MiB", "999 MiB", "1.00 GiB", "5.00 TiB",
    ]  # fmt: skip

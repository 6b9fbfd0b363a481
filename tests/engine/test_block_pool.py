"""The block pool as a state machine: against a model that knows who holds what and what is written where."""

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, initialize, invariant, precondition, rule

from pllm.runtime.block_pool import BlockPool
from pllm.runtime.prefix_cache import ROOT, chain_digests

SIZE = 2
TOTAL = 8


class Table:
    """A holder: its tokens, the blocks they are in, and how many of those were committed."""

    def __init__(self, tokens: list[int], blocks: list[int], committed: int) -> None:
        self.tokens = tokens
        self.blocks = blocks
        self.committed = committed


class PoolMachine(RuleBasedStateMachine):
    tables = Bundle("tables")

    @initialize()
    def start(self) -> None:
        self.pool = BlockPool(TOTAL, SIZE)
        self.memory: list[list[int | None]] = [[None] * SIZE for _ in range(TOTAL)]
        self.held: list[Table] = []

    def write(self, table: Table, tokens: list[int]) -> None:
        start = len(table.tokens)
        end = start + len(tokens)
        if not self.pool.can_extend(table.blocks, start, end):
            return
        before = self.pool.num_available
        wanted = self.pool.missing(table.blocks, end)
        copies = self.pool.extend(table.blocks, start, end)
        assert before - self.pool.num_available == wanted + len(copies)
        for source, target in copies:
            self.memory[target] = self.memory[source].copy()
        table.tokens += tokens
        for position in range(start, end):
            self.memory[table.blocks[position // SIZE]][position % SIZE] = table.tokens[position]

    @rule(target=tables, tokens=st.lists(st.integers(0, 1), max_size=7))
    def open(self, tokens: list[int]) -> Table:
        """Like an admission: find what is cached, compute the rest."""
        digests: list[bytes] = []
        full = max(0, len(tokens) - 1) // SIZE
        chain_digests(digests, tokens, SIZE, full, "salt")
        blocks: list[int] = []
        for index in range(full):
            parent = blocks[-1] if blocks else ROOT
            block = self.pool.find(digests[index], parent, tokens[index * SIZE : (index + 1) * SIZE])
            if block is None:
                break
            blocks.append(block)
        self.pool.fork(blocks)
        table = Table(tokens[: len(blocks) * SIZE], blocks, len(blocks))
        self.held.append(table)
        self.write(table, tokens[len(blocks) * SIZE :])
        return table

    @rule(table=tables, tokens=st.lists(st.integers(0, 1), min_size=1, max_size=3))
    def extend(self, table: Table, tokens: list[int]) -> None:
        self.write(table, tokens)

    @rule(target=tables, table=tables)
    def fork(self, table: Table) -> Table:
        other = Table(table.tokens.copy(), table.blocks.copy(), table.committed)
        self.pool.fork(other.blocks)
        self.held.append(other)
        return other

    @rule(table=tables)
    def commit(self, table: Table) -> None:
        full = len(table.tokens) // SIZE
        digests: list[bytes] = []
        chain_digests(digests, table.tokens, SIZE, full, "salt")
        for index in range(table.committed, full):
            parent = table.blocks[index - 1] if index else ROOT
            tokens = table.tokens[index * SIZE : (index + 1) * SIZE]
            table.blocks[index] = self.pool.commit(table.blocks[index], digests[index], parent, tokens)
        table.committed = max(full, table.committed)

    @rule(table=consumes(tables))
    def free(self, table: Table) -> None:
        self.pool.free(table.blocks)
        self.held.remove(table)

    @precondition(lambda self: self.held)
    @rule(table=tables, place=st.integers(0, 3))
    def forget(self, table: Table, place: int) -> None:
        for block in table.blocks[place:]:
            self.pool.forget(block)

    @rule()
    def reset(self) -> None:
        self.pool.reset_prefixes()
        assert self.pool.num_cached == 0

    @invariant()
    def adds_up(self) -> None:
        pool = self.pool
        held = [block for table in self.held for block in table.blocks]
        assert pool._holders == [held.count(block) for block in range(TOTAL)]
        assert pool.num_used == len(set(held))
        states = [*pool._free, *pool._cached, *set(held)]
        assert sorted(states) == list(range(TOTAL)), "each block is in exactly one state"

    @invariant()
    def nobody_reads_anothers_tokens(self) -> None:
        for table in self.held:
            slots = [token for block in table.blocks for token in self.memory[block]]
            assert slots[: len(table.tokens)] == table.tokens

    @invariant()
    def prefixes_are_a_forest(self) -> None:
        entries = self.pool._prefixes._entries
        assert len(self.pool._prefixes._by_digest) == len(entries)
        for block, entry in entries.items():
            assert self.memory[block] == list(entry.token_ids)
            assert entry.parent == ROOT or block in entries[entry.parent].children
            assert entry.children <= entries.keys()
        assert all(block in entries for block in self.pool._cached)

    def teardown(self) -> None:
        for table in self.held:
            self.pool.free(table.blocks)
        assert self.pool.num_used == 0
        self.pool.reset_prefixes()
        assert self.pool.num_free == TOTAL


PoolMachine.TestCase.settings = settings(max_examples=80, stateful_step_count=50, deadline=None)
TestPoolMachine = PoolMachine.TestCase


def filled(pool: BlockPool, tokens: list[int], salt: str = "") -> list[int]:
    """A table of full blocks, computed and committed."""
    digests: list[bytes] = []
    table: list[int] = []
    pool.extend(table, 0, len(tokens))
    chain_digests(digests, tokens, pool.block_size, len(table), salt)
    for index, digest in enumerate(digests):
        parent = table[index - 1] if index else ROOT
        contents = tokens[index * pool.block_size : (index + 1) * pool.block_size]
        table[index] = pool.commit(table[index], digest, parent, contents)
    return table


def test_free_blocks_go_before_cached_ones_and_the_tail_is_evicted_first() -> None:
    pool = BlockPool(4, 2)
    table = filled(pool, [1, 2, 3, 4, 5, 6])
    pool.free(table)
    assert (pool.num_free, pool.num_cached, pool.num_used) == (1, 3, 0)
    taken = [pool.allocate() for _ in range(4)]
    assert taken[0] not in table
    assert taken[1:] == list(reversed(table))


def test_what_was_used_last_is_evicted_last() -> None:
    pool = BlockPool(4, 2)
    first, second = filled(pool, [1, 2]), filled(pool, [3, 4])
    pool.free(first)
    pool.free(second)
    pool.fork(first)  # a hit
    pool.free(first)
    pool.allocate()
    pool.allocate()
    assert pool.allocate() == second[0]


def test_one_prefix_is_held_once() -> None:
    pool = BlockPool(8, 2)
    first, second = filled(pool, [1, 2, 3, 4]), filled(pool, [1, 2, 3, 4])
    assert first == second
    assert pool.num_used == 2


def test_only_a_shared_partial_block_is_copied_and_its_last_holder_writes_in_place() -> None:
    pool = BlockPool(8, 4)
    table: list[int] = []
    assert pool.extend(table, 0, 6) == []
    other = table.copy()
    pool.fork(other)
    assert pool.extend(other, 6, 7) == [(table[1], other[1])]
    assert (other[0], other[1] != table[1]) == (table[0], True)
    assert pool.extend(table, 6, 7) == []


def test_a_shared_full_block_is_not_copied() -> None:
    pool = BlockPool(8, 4)
    table: list[int] = []
    pool.extend(table, 0, 4)
    other = table.copy()
    pool.fork(other)
    assert pool.extend(other, 4, 5) == []
    assert other[0] == table[0]


def test_freeing_what_nobody_holds_is_an_error() -> None:
    pool = BlockPool(2, 4)
    block = pool.allocate()
    pool.free([block])
    with pytest.raises(AssertionError, match="nobody"):
        pool.free([block])


def test_forgetting_a_block_forgets_what_follows_it() -> None:
    pool = BlockPool(4, 2)
    table = filled(pool, [1, 2, 3, 4, 5, 6])
    pool.free(table)
    pool.forget(table[1])
    assert (pool.num_free, pool.num_cached) == (3, 1)
    assert filled(pool, [1, 2])[0] == table[0]

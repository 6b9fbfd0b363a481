"""The KV cache's blocks: who holds which, and what is kept for later. Numbers only; the memory is the model runner's.

    +--------+--------------+----------------------------------------------+
    | free   | cached       | used                                         |
    | no use | no holder,   | 1 or more holders; its contents may be in    |
    |        | known prefix | the prefix cache too                         |
    +--------+--------------+----------------------------------------------+
       |  ^        |  ^  \\                  ^
       |  '--------'  |   '---- fork -------+       free + cached + used = total, always
       |   evicted    '-------- free -------+
       '---------------------- allocate ----'

allocate() takes a free block, else evicts the cached block that was used least recently.
"""

from collections import OrderedDict
from collections.abc import Sequence

from pllm.runtime.prefix_cache import PrefixCache

__all__ = ["BlockPool"]


class BlockPool:
    """`num_blocks` blocks of `block_size` token slots each."""

    def __init__(self, num_blocks: int, block_size: int) -> None:
        self.num_blocks = num_blocks
        self.block_size = block_size
        self._holders = [0] * num_blocks
        self._free = list(reversed(range(num_blocks)))  # a stack: low ids first, and the block last used is still warm
        self._cached: OrderedDict[int, None] = (
            OrderedDict()
        )  # no holder, in the prefix cache; least recently used first
        self._prefixes = PrefixCache()

    @property
    def num_free(self) -> int:
        return len(self._free)

    @property
    def num_cached(self) -> int:
        return len(self._cached)

    @property
    def num_available(self) -> int:
        """Blocks that `allocate` can give."""
        return len(self._free) + len(self._cached)

    @property
    def num_used(self) -> int:
        return self.num_blocks - len(self._free) - len(self._cached)

    def allocate(self) -> int:
        """A block with one holder. There must be one: see `can_extend`."""
        if self._free:
            block = self._free.pop()
        else:
            block, _ = self._cached.popitem(last=False)
            evicted = self._prefixes.remove(block)
            assert evicted == [block], "a block was evicted before one that follows it"
        self._holders[block] = 1
        return block

    def fork(self, table: Sequence[int]) -> None:
        """One more holder for each block."""
        for block in table:
            if self._holders[block] == 0:
                del self._cached[block]
            self._holders[block] += 1

    def free(self, table: Sequence[int]) -> None:
        """One holder less for each block, from the tail: what is most particular to a sequence is evicted first."""
        for block in reversed(table):
            self._holders[block] -= 1
            assert self._holders[block] >= 0, f"block {block} was freed by nobody who held it"
            if self._holders[block] == 0:
                if block in self._prefixes:
                    self._cached[block] = None
                else:
                    self._free.append(block)

    def missing(self, table: Sequence[int], num_tokens: int) -> int:
        """Blocks to add to a table before it covers so many tokens."""
        return -(-num_tokens // self.block_size) - len(table)

    def can_extend(self, table: Sequence[int], start: int, end: int) -> bool:
        """Whether `extend` with the same arguments finds the blocks it takes."""
        return self.missing(table, end) + self._must_copy(table, start) <= self.num_available

    def extend(self, table: list[int], start: int, end: int) -> list[tuple[int, int]]:
        """Make slots `start` to `end` of a table that ends at `start` writable, in place.

        Returns the (source, target) block to copy first, where the block that `start` lies in has other holders.
        """
        copies = []
        if self._must_copy(table, start):
            source, target = table[-1], self.allocate()
            table[-1] = target
            self._holders[source] -= 1  # never the last: that one writes in place
            copies.append((source, target))
        while len(table) * self.block_size < end:
            table.append(self.allocate())
        return copies

    def _must_copy(self, table: Sequence[int], start: int) -> bool:
        return start < len(table) * self.block_size and self._holders[table[-1]] > 1

    def find(self, digest: bytes, parent: int, token_ids: Sequence[int]) -> int | None:
        """The block that holds these tokens after the parent block; `fork` it to keep it."""
        return self._prefixes.find(digest, parent, token_ids)

    def commit(self, block: int, digest: bytes, parent: int, token_ids: Sequence[int]) -> int:
        """Enter a full, computed block into the prefix cache; returns the block to hold from now on.

        Where the same contents are there already (two sequences computed one prefix side by side), the holder takes
        the one that is there and gives back its own: memory, and the forest of prefixes, hold each prefix once.
        """
        twin = self._prefixes.find(digest, parent, token_ids)
        if twin is None:
            self._prefixes.add(block, digest, parent, token_ids)
            return block
        if twin != block:
            self.fork([twin])
            self.free([block])
        return twin

    def forget(self, block: int) -> None:
        """Take a block, and all that follow it, out of the prefix cache; their holders keep them."""
        if block in self._prefixes:
            self._to_free(self._prefixes.remove(block))

    def reset_prefixes(self) -> None:
        """Forget all prefixes."""
        self._prefixes.clear()
        self._to_free(list(self._cached))

    def _to_free(self, blocks: Sequence[int]) -> None:
        for block in blocks:
            if block in self._cached:
                del self._cached[block]
                self._free.append(block)

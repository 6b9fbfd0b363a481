"""Which full KV blocks hold which tokens, so that a prompt's known beginning is not computed again.

A block's key is a SHA-256 chain over everything before it: salt, then block after block of tokens. The hash only finds
a candidate; what decides is that the candidate's tokens, and its parent block, are the very ones looked for. So a
collision, accidental or made, costs a miss and never shows one client another's context.

The entries form a forest: an entry's parent is an entry. It holds by itself, because who holds a block holds those
before it, and tables are freed from the tail: a parent is always used more recently than its children.
"""

from array import array
from collections.abc import Sequence
from dataclasses import dataclass, field
from hashlib import sha256

__all__ = ["ROOT", "PrefixCache", "chain_digests"]

ROOT = -1  # the parent of a first block


def _digest(data: bytes) -> bytes:
    return sha256(data).digest()


def chain_digests(digests: list[bytes], token_ids: Sequence[int], block_size: int, count: int, salt: str) -> None:
    """Extend `digests`, those of the leading full blocks of `token_ids` (int32 ids), to `count` blocks, in place."""
    for index in range(len(digests), count):
        parent = digests[-1] if index else _digest(salt.encode("utf-8", "surrogatepass"))
        tokens = array("i", token_ids[index * block_size : (index + 1) * block_size])
        digests.append(_digest(parent + tokens.tobytes()))


@dataclass(slots=True)
class _Entry:
    digest: bytes
    parent: int
    token_ids: Sequence[int]
    children: set[int] = field(default_factory=set)


class PrefixCache:
    """An index of blocks by contents. It knows nothing of who holds them: that is the BlockPool's."""

    def __init__(self) -> None:
        self._entries: dict[int, _Entry] = {}
        self._by_digest: dict[bytes, int] = {}

    def __contains__(self, block: int) -> bool:
        return block in self._entries

    def __len__(self) -> int:
        return len(self._entries)

    def find(self, digest: bytes, parent: int, token_ids: Sequence[int]) -> int | None:
        """The block that holds these tokens after that parent block, or None."""
        block = self._by_digest.get(digest)
        if block is None:
            return None
        entry = self._entries[block]
        return block if entry.parent == parent and entry.token_ids == token_ids else None

    def add(self, block: int, digest: bytes, parent: int, token_ids: Sequence[int]) -> bool:
        """Enter a block. False where other contents have its digest, or its parent is not, or no longer, here."""
        if digest in self._by_digest or (parent != ROOT and parent not in self._entries):
            return False
        self._entries[block] = _Entry(digest, parent, token_ids)
        self._by_digest[digest] = block
        if parent != ROOT:
            self._entries[parent].children.add(block)
        return True

    def remove(self, block: int) -> list[int]:
        """Take out a block and all that follow it; returns them."""
        parent = self._entries[block].parent
        if parent != ROOT:
            self._entries[parent].children.discard(block)
        removed = [block]
        for each in removed:  # grows while it is walked: a chain may be longer than Python's stack
            entry = self._entries.pop(each)
            del self._by_digest[entry.digest]
            removed.extend(entry.children)
        return removed

    def clear(self) -> None:
        self._entries.clear()
        self._by_digest.clear()

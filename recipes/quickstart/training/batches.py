"""Batches: documents packed into rows of token ids."""

from dataclasses import dataclass

import torch
from transformers import PreTrainedTokenizerFast

from conversations.documents import Document, draw_document
from conversations.markup import END_OF_TEXT
from conversations.source import Source
from training.tokenizer import alphabetic_pieces, token_id

__all__ = ["IGNORED", "Batch", "Batches"]

IGNORED = -100
"""The target of a position that the loss leaves out, by torch's own convention."""


@dataclass(frozen=True, slots=True)
class Batch:
    """Token ids and, for every position, the id to predict there (or ``IGNORED``)."""

    inputs: torch.Tensor
    targets: torch.Tensor


class Batches:
    """Packs documents into rows. Every fourth batch has long rows, which carry tools and long conversations."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast, seed: str, tokens: int) -> None:
        self.core = tokenizer.backend_tokenizer
        self.pieces = alphabetic_pieces(tokenizer)
        self.end = token_id(tokenizer, END_OF_TEXT)
        self.seed, self.tokens = seed, tokens
        self.cache: dict[str, list[int]] = {}

    def encode(self, text: str) -> list[int]:
        """Token ids of one segment; short segments recur and are remembered."""
        found = self.cache.get(text)
        if found is None:
            found = self.core.encode(text, add_special_tokens=False).ids
            if len(text) < 40 and len(self.cache) < 100_000:
                self.cache[text] = found
        return found

    def document(self, document: Document) -> tuple[list[int], list[bool]]:
        """Ids of a document and which of them the loss counts."""
        ids: list[int] = []
        learn: list[bool] = []
        for segment in document.segments:
            encoded = self.encode(segment.text)
            ids += encoded
            learn += [segment.learn] * len(encoded)
        if ids[-1] != self.end:
            ids.append(self.end)
            learn.append(False)
        return ids, learn

    def batch(self, step: int) -> Batch:
        """Batch number ``step``."""
        long = step % 4 == 3
        length = 768 if long else 256
        count = max(1, round(self.tokens / length))
        source = Source(f"{self.seed}/train/{step}", pieces=self.pieces)
        rows: list[tuple[list[int], list[bool]]] = [([], []) for _ in range(count)]
        misses = 0
        while misses < 6:
            ids, learn = self.document(draw_document(source, long))
            for row in rows:
                if len(row[0]) + len(ids) <= length + 1:
                    row[0].extend(ids)
                    row[1].extend(learn)
                    break
            else:
                misses += 1
        inputs = torch.full((count, length), self.end)
        targets = torch.full((count, length), IGNORED)
        for index, (row_ids, row_learn) in enumerate(rows):
            packed = torch.tensor(row_ids)
            inputs[index, : len(packed) - 1] = packed[:-1]
            targets[index, : len(packed) - 1] = torch.where(torch.tensor(row_learn[1:]), packed[1:], IGNORED)
        return Batch(inputs, targets)

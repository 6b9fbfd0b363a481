"""What a program for CUDA is made for: how many rows its steps have, and what the rows are."""

from dataclasses import dataclass

__all__ = ["SMALL_ROWS", "StepShape"]

SMALL_ROWS = 8
"""Up to so many rows products are bound by reading weights, and have kernels of their own (`kernels/cuda`)."""


@dataclass(frozen=True, slots=True)
class StepShape:
    """The steps that one program is for."""

    max_rows: int
    """New tokens of a step, at most."""
    max_sequences: int
    decodes: bool
    """Whether every sequence has one new token."""

    @property
    def is_small(self) -> bool:
        return self.max_rows <= SMALL_ROWS

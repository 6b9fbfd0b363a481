"""A check: one quantity of two sides, the base and the new one, and what the gate says of it."""

from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum

__all__ = ["Check", "Verdict", "verdict_of"]


class Verdict(StrEnum):
    """What the gate says of a quantity, and of a whole run."""

    PASS = "pass"  # noqa: S105  (no password)
    REGRESSION = "regression"
    VOID = "void"
    """Nothing can be said: the machine was too restless, or a side could not be measured. Never counts as a pass."""

    @property
    def exit_code(self) -> int:
        """Of a process whose verdict this is: 0, 5 or 3."""
        return {Verdict.PASS: 0, Verdict.REGRESSION: 5, Verdict.VOID: 3}[self]


@dataclass(frozen=True, slots=True)
class Check:
    """``base`` and ``new`` in ``unit`` (empty: a plain number, or a text); None where a side has no such quantity.

    ``reason`` says in a few words what the verdict rests on: a ratio with its interval, or what differs.
    """

    name: str
    base: float | str | None
    new: float | str | None
    verdict: Verdict
    reason: str = ""
    unit: str = ""


def verdict_of(checks: Iterable[Check]) -> Verdict:
    """Of a run: a regression where there is one, else void where anything is, else pass. No checks at all are void."""
    found = {check.verdict for check in checks}
    if Verdict.REGRESSION in found:
        return Verdict.REGRESSION
    return Verdict.PASS if found == {Verdict.PASS} else Verdict.VOID

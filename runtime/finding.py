"""A finding: one thing that the certificate says, beside what this machine does."""

from dataclasses import dataclass

__all__ = ["Finding"]


@dataclass(frozen=True, slots=True)
class Finding:
    """What was compared, as it was when built and as it is here. ``agrees`` is None where a difference is no fault
    (a latency on another machine)."""

    what: str
    built: str
    here: str
    agrees: bool | None

"""What the gate and its workers say to each other: one JSON object a line.

A worker may be of another checkout, older or newer than the gate that started it, so these forms are a promise: fields
are added with a default, never renamed, and a change of meaning raises `VERSION`, at which an older worker ends.
"""

import msgspec

__all__ = ["VERSION", "Closed", "Job", "Opened", "PassTurn", "StepTurn", "Took", "Turn"]

VERSION = 1


class Job(msgspec.Struct, frozen=True, kw_only=True):
    """What a worker opens. All sides are given pools of equally many KV blocks, so that their memory compares."""

    version: int = VERSION
    artifact: str
    num_blocks: int
    threads: int


class Opened(msgspec.Struct, frozen=True, kw_only=True):
    """Moments of the machine's monotonic clock, in seconds: ready to serve, and the first token of W4's prompt; and how
    long the main thread had waited for a core until then."""

    ready: float
    ready_wait: float
    first_token: float
    first_token_wait: float
    token_id: int


class StepTurn(msgspec.Struct, frozen=True, kw_only=True, tag="step"):
    """One step, as `certificate.step_of` makes it, again and again after one that warms up: until quiet steps have
    taken so many ``seconds``, or all of them twice as many; ``least`` times at least."""

    num_seqs: int
    num_tokens: int
    context: int
    seconds: float
    least: int = 2


class PassTurn(msgspec.Struct, frozen=True, kw_only=True, tag="pass"):
    """One pass over a workload (`bench.workload`) through the engine."""

    workload: str


Turn = StepTurn | PassTurn


class Took(msgspec.Struct, frozen=True, kw_only=True):
    """Steps: how long each took, and how long of that the thread that ran it waited for a core. In seconds.

    Of a step's turn: each repeat. Of a pass: every step of the engine in order, and how many there were until each
    request had its first token.
    """

    seconds: list[float]
    waits: list[float]
    num_first: int = 0


class Closed(msgspec.Struct, frozen=True, kw_only=True):
    """Bytes at the end of a worker: the most that it ever held, mapped weights included."""

    peak_rss: int

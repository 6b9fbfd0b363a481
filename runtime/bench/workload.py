"""Workloads: which prompts, how many tokens each, how many at once. The same on every machine and for every peer."""

import random
from collections.abc import Callable
from dataclasses import dataclass

from pllm.runtime.errors import UserInputError

__all__ = ["WORKLOADS", "Workload", "WorkloadChoice", "WorkloadRequest", "warmup"]

_LOW, _HIGH = 300, 4000  # ids are drawn below what nearly every vocabulary has, and above most special tokens
_SEED, _WARMUP_SEED = 0, 1


@dataclass(frozen=True, slots=True)
class WorkloadRequest:
    """A prompt of token ids, and how many tokens must follow it: exactly so many, whatever they are."""

    prompt_token_ids: tuple[int, ...]
    num_output_tokens: int


@dataclass(frozen=True, slots=True)
class Workload:
    """Requests in order of arrival; at most ``concurrency`` of them are unfinished at any time."""

    name: str
    requests: tuple[WorkloadRequest, ...]
    concurrency: int

    @classmethod
    def named(cls, name: str, vocab_size: int) -> "Workload":
        """One of `WORKLOADS`, with ids that a vocabulary of that size has. Raises UserInputError for another name."""
        make = WORKLOADS.get(name)
        if make is None:
            raise UserInputError(f"there is no workload {name!r}: choose one of {', '.join(WORKLOADS)}")
        return make()._within(vocab_size)

    @classmethod
    def uniform(
        cls, num_requests: int, input_len: int, output_len: int, *, concurrency: int, vocab_size: int
    ) -> "Workload":
        """``num_requests`` equally long requests; a prompt has ``input_len`` tokens."""
        name = f"{num_requests} x {input_len} in, {output_len} out, {concurrency} at once"
        return _uniform(name, num_requests, input_len, output_len, concurrency)._within(vocab_size)

    @property
    def num_prompt_tokens(self) -> int:
        """Of all requests together."""
        return sum(len(request.prompt_token_ids) for request in self.requests)

    @property
    def num_output_tokens(self) -> int:
        """Of all requests together."""
        return sum(request.num_output_tokens for request in self.requests)

    def check(self, max_model_len: int) -> None:
        """Raises UserInputError where a prompt and its output are longer than a sequence may be."""
        longest = max(len(request.prompt_token_ids) + request.num_output_tokens for request in self.requests)
        if longest > max_model_len:
            raise UserInputError(
                f"the workload {self.name!r} has a request of {longest} tokens, prompt and output together, and the "
                f"model takes {max_model_len}: make --input-len and --output-len shorter, or build the artifact with "
                f"--set engine.max_model_len={longest}"
            )

    def _within(self, vocab_size: int) -> "Workload":
        """The same workload for a small vocabulary: each id modulo its size. Ids that are legal stay as they are."""
        if vocab_size >= _HIGH:
            return self
        requests = tuple(
            WorkloadRequest(tuple(i % vocab_size for i in request.prompt_token_ids), request.num_output_tokens)
            for request in self.requests
        )
        return Workload(self.name, requests, self.concurrency)


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkloadChoice:
    """A workload by its name, or ``num_requests`` equal ones, ``concurrency`` at once."""

    workload: str | None = None
    num_requests: int = 32
    input_len: int = 128
    output_len: int = 32
    concurrency: int = 8

    def make(self, vocab_size: int) -> Workload:
        """The workload, with ids that a vocabulary of that size has."""
        if self.workload is not None:
            return Workload.named(self.workload, vocab_size)
        return Workload.uniform(
            self.num_requests, self.input_len, self.output_len, concurrency=self.concurrency, vocab_size=vocab_size
        )


def warmup(vocab_size: int) -> Workload:
    """What runs before anything is measured: one request whose prompt none of the workloads has."""
    rng = _generator(_WARMUP_SEED)
    return Workload("warm-up", (WorkloadRequest(_ids(rng, 128), 4),), 1)._within(vocab_size)


def _generator(seed: int) -> random.Random:
    """Python promises that a seed gives the same numbers in every version."""
    return random.Random(seed)  # noqa: S311  (token ids, not secrets)


def _ids(rng: random.Random, count: int) -> tuple[int, ...]:
    return tuple(rng.randrange(_LOW, _HIGH) for _ in range(count))


def _uniform(name: str, num_requests: int, input_len: int, output_len: int, concurrency: int) -> Workload:
    rng = _generator(_SEED)
    requests = tuple(WorkloadRequest(_ids(rng, input_len), output_len) for _ in range(num_requests))
    return Workload(name, requests, concurrency)


def _mixed() -> Workload:
    rng = _generator(_SEED)
    # All lengths are drawn before any prompt: a prompt's ids do not depend on how long later ones are.
    lengths = [(rng.randint(16, 256), rng.randint(8, 64)) for _ in range(32)]
    requests = tuple(WorkloadRequest(_ids(rng, prompt), output) for prompt, output in lengths)
    return Workload("W3", requests, 16)


WORKLOADS: dict[str, Callable[[], Workload]] = {
    "W1": lambda: _uniform("W1", 1, 128, 32, 1),
    "W2": lambda: _uniform("W2", 8, 128, 32, 8),
    "W3": _mixed,
    "W4": lambda: _uniform("W4", 1, 128, 32, 1),
}
"""W1: one request, 128 tokens in and 32 out. W2: eight of them at once. W3: 32 requests of 16 to 256 tokens in and 8
to 64 out, 16 at a time. W4: the request of W1 in a cold process."""

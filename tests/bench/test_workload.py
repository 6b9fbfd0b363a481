"""The workloads are fixed: their ids are those that peers were measured on."""

import hashlib
import json

import pytest

from pllm.runtime.bench.workload import WORKLOADS, Workload, warmup
from pllm.runtime.errors import UserInputError

W1 = "6c7c34ef985f8d09258aa47734b01cbe3da667a1f861e278204a28d6f126cadf"
DIGESTS = {
    "W1": (1, W1),
    "W2": (8, "6131d5b6fbb6a85fc7719c3c845bc8ee1f97dba0e6650b504f22bd3a34bd8cae"),
    "W3": (16, "e77f0d1ee87195c3d22718e3769a50b699f1c43b716a582df262020fdd3c896d"),
    "W4": (1, W1),
}
WARMUP = "05453c79e592f56644cda86516931b60116a3f57f7daa7480871ee70c7915200"
LARGE = 151936


def digest(workload: Workload) -> str:
    content = [[list(request.prompt_token_ids), request.num_output_tokens] for request in workload.requests]
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()


@pytest.mark.parametrize("name", sorted(WORKLOADS))
def test_named_workloads_have_the_peers_ids(name: str) -> None:
    workload = Workload.named(name, LARGE)
    assert (workload.concurrency, digest(workload)) == DIGESTS[name]


def test_the_warm_up_is_the_peers_and_no_part_of_a_workload() -> None:
    workload = warmup(LARGE)
    assert digest(workload) == WARMUP
    prompt = workload.requests[0].prompt_token_ids
    for name in WORKLOADS:
        assert all(request.prompt_token_ids[:16] != prompt[:16] for request in Workload.named(name, LARGE).requests)


def test_equal_requests_are_the_workloads_of_equal_requests() -> None:
    two = Workload.uniform(8, 128, 32, concurrency=8, vocab_size=LARGE)
    assert two.requests == Workload.named("W2", LARGE).requests
    assert (two.num_prompt_tokens, two.num_output_tokens) == (1024, 256)


@pytest.mark.parametrize("vocab_size", [1, 300, 1280, 3999])
def test_small_vocabularies_get_ids_modulo_their_size(vocab_size: int) -> None:
    small, large = Workload.named("W3", vocab_size), Workload.named("W3", 4000)
    assert large == Workload.named("W3", LARGE)
    for ours, theirs in zip(small.requests, large.requests, strict=True):
        assert ours.prompt_token_ids == tuple(i % vocab_size for i in theirs.prompt_token_ids)
        assert ours.num_output_tokens == theirs.num_output_tokens
    assert max(warmup(vocab_size).requests[0].prompt_token_ids) < vocab_size


def test_what_does_not_exist_or_fit_is_refused_with_the_numbers() -> None:
    with pytest.raises(UserInputError, match="W1, W2, W3, W4"):
        Workload.named("W9", LARGE)
    workload = Workload.uniform(1, 100, 29, concurrency=1, vocab_size=LARGE)
    workload.check(129)
    with pytest.raises(UserInputError, match=r"129 tokens.*takes 128"):
        workload.check(128)

"""What the profile measures of the quickstart model makes sense, and is measured from wherever a build is started."""

import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

from pllm.build.measurement import Measured, Question
from pllm.build.rehearsal import RehearsalSpec
from pllm.runtime.artifact import Artifact
from pllm.runtime.machine import cpu_count
from pllm.runtime.scheduler_config import LOGIT_ROWS

SCRIPT = """
import sys, msgspec
from pllm.build.measurement import Question, ask
sys.stdout.buffer.write(msgspec.json.encode(ask(msgspec.json.decode(sys.argv[1], type=Question))))
"""


@pytest.fixture(scope="module")
def question(artifact: Path) -> Question:
    manifest = Artifact.read(artifact).manifest
    engine = manifest.engine
    spec = RehearsalSpec(
        directory=str(artifact),
        program=manifest.program("main"),
        operators=manifest.operators,
        weights=manifest.weights.files,
        kv=manifest.kv,
        max_num_seqs=engine.max_num_seqs,
        max_num_batched_tokens=engine.max_num_batched_tokens,
        max_model_len=engine.max_model_len,
        num_threads=1,
        vocab_size=manifest.model.vocab_size,
    )
    return Question(spec, (1, 2), (1, 2))


def asked_by_a_script(question: Question) -> Measured:
    """Asked for by a script that is read from standard input: it has no file that a second process could import."""
    done = subprocess.run(
        [sys.executable, "-", msgspec.json.encode(question).decode()],
        input=SCRIPT.encode(),
        capture_output=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr.decode()
    return msgspec.json.decode(done.stdout, type=Measured)


@pytest.fixture(scope="module")
def measured(question: Question) -> Measured:
    return asked_by_a_script(question)


def test_the_table_has_every_bucket_and_the_prefills(question: Question, measured: Measured) -> None:
    assert [(row.num_seqs, row.num_tokens) for row in measured.decode] == [(1, 1), (2, 2)]
    sizes = [row.num_tokens for row in measured.prefill]
    assert sizes == sorted(set(sizes))
    assert sizes[-1] == question.spec.max_num_batched_tokens
    assert all(row.ms > 0 for row in (*measured.decode, *measured.prefill))


def test_it_is_tuned_among_what_was_asked(measured: Measured) -> None:
    assert measured.tuning.threads in (1, 2)
    assert measured.tuning.cores == cpu_count()


def test_a_context_shorter_than_what_is_tuned_with_is_measured(question: Question) -> None:
    short = msgspec.structs.replace(question.spec, max_num_seqs=1, max_model_len=64)
    measured = asked_by_a_script(Question(short, (1,), (1,)))
    assert [row.num_tokens for row in measured.prefill] == [32, 64]


def test_activations_are_the_largest_steps_tensors(question: Question, measured: Measured, artifact: Path) -> None:
    manifest = Artifact.read(artifact).manifest
    logits = max(LOGIT_ROWS, question.spec.max_num_seqs) * manifest.model.vocab_size * 4
    assert logits <= measured.activations
    assert 16 << 20 < measured.runtime < 512 << 20  # numpy, Python itself; libtorch where a program calls it


def test_activations_are_neither_the_weights_nor_the_pool(question: Question, artifact: Path) -> None:
    """Which are counted elsewhere: the largest step is small here, and its tensors are smaller than either."""
    manifest = Artifact.read(artifact).manifest
    small = msgspec.structs.replace(question.spec, max_num_seqs=1, max_num_batched_tokens=16, max_model_len=256)
    pool = manifest.kv.block_bytes * small.max_model_len // manifest.kv.block_size
    assert 0 < asked_by_a_script(Question(small, (1,), (1,))).activations < min(pool, manifest.memory.weights)

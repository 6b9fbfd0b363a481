"""The data that the quickstart model was trained on: the same from the same seed, whatever is done to its generator."""

import hashlib
import json
from pathlib import Path

import pytest

QUICKSTART = Path(__file__).parents[2] / "recipes" / "quickstart"
SEED = "quickstart-1"
DOCUMENTS = "b0bf19cfffbadd543d30151414250445aaef0abc389acae7ff319a41c1c06fab"


@pytest.fixture(autouse=True)
def importable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(QUICKSTART)


def test_a_seed_gives_the_documents_that_it_gave_when_the_model_was_trained() -> None:
    from conversations.documents import draw_document
    from conversations.source import Source

    digest = hashlib.sha256()
    for step in range(200):
        source = Source(f"{SEED}/train/{step}", pieces=["ab", "cat", "ing", "str"])
        for _ in range(10):
            for segment in draw_document(source, long=step % 4 == 3).segments:
                digest.update(json.dumps([segment.text, segment.learn]).encode())
    assert digest.hexdigest() == DOCUMENTS


def test_training_and_evaluation_share_no_fact() -> None:
    from conversations.skills import SKILLS
    from conversations.source import Source

    for name, skill in SKILLS.items():
        keys = [{skill(Source(f"{name}/{i}", evaluation=side)).key for i in range(100)} for side in (False, True)]
        assert keys[0] and keys[1]
        assert not keys[0] & keys[1], name


def test_the_seed_gives_the_tokenizer_that_is_shipped(tmp_path: Path) -> None:
    from training.tokenizer import build_tokenizer, check_rendering

    tokenizer = build_tokenizer(SEED)
    tokenizer.save_pretrained(tmp_path)
    ours, shipped = (json.loads((folder / "tokenizer.json").read_text()) for folder in (tmp_path, QUICKSTART))
    assert ours == shipped
    check_rendering(tokenizer, SEED)

"""Answers of a given form, over the fake model: whatever it would rather say, the form is kept."""

import json
import re
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future
from pathlib import Path

import numpy as np
import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models

from pllm.runtime.engine import Engine
from pllm.runtime.errors import QueueFullError, RequestError
from pllm.runtime.grammar import Grammar, Vocabulary
from pllm.runtime.grammar_store import GrammarStore
from pllm.runtime.sampling import Sampler
from pllm.runtime.sampling_params import SamplingParams
from pllm.runtime.step import SampleSpec
from pllm.runtime.structured_outputs import StructuredOutputsParams

from .fake_model import EOS, VOCAB, Run

LETTERS = 'abcdefghijklmnop0123456789{}":,'  # the fake model's ids 0 to 30; 31 is its end token
PROMPT = [5, 6, 7]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    assert len(LETTERS) == EOS == VOCAB - 1
    tokenizer = Tokenizer(models.BPE({letter: i for i, letter in enumerate(LETTERS)}, []))
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken("<end>", special=True)])
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.json"
    tokenizer.save(str(path))
    return path


@pytest.fixture(scope="module")
def store(tokenizer: Path) -> Iterator[GrammarStore]:
    store = GrammarStore(tokenizer, VOCAB)
    yield store
    store.close()


class GrammarRun(Run):
    """An engine over the fake model that compiles grammars."""

    def __init__(self, store: GrammarStore | None, **changes: object) -> None:
        super().__init__(**changes)
        self.engine = Engine(self.scheduler, self.runner, store)

    def finish(self, limit: int = 5000) -> Run:
        deadline = time.monotonic() + 60
        while self.engine.has_unfinished and not self.runner.steps and time.monotonic() < deadline:
            self.step()  # nothing runs before the first grammar is ready
        return super().finish(limit)


def params(seed: int = 1, **form: object) -> SamplingParams:
    return SamplingParams(temperature=1, seed=seed, max_tokens=40, structured_outputs=StructuredOutputsParams(**form))


def text(run: Run, name: str, index: int = 0) -> str:
    return "".join(LETTERS[token] for token in run.tokens(name, index) if token != EOS)


SCHEMA = {
    "type": "object",
    "properties": {"a": {"type": "integer", "maximum": 999}, "b": {"enum": ["c", "de"]}},
    "required": ["a", "b"],
    "additionalProperties": False,
}


@pytest.mark.parametrize(
    ("form", "fits"),
    [
        ({"regex": "^(ab|cd)[0-9]{1,3}$"}, lambda said: re.fullmatch("(ab|cd)[0-9]{1,3}", said)),
        ({"regex": r"\d{2}"}, lambda said: re.fullmatch("[0-9]{2}", said)),
        ({"choice": ("abc", "abd", "0")}, lambda said: said in ("abc", "abd", "0")),
        ({"json": SCHEMA}, lambda said: json.loads(said)["b"] in ("c", "de") and json.loads(said)["a"] < 1000),
        ({"json": json.dumps(SCHEMA)}, lambda said: json.loads(said).keys() == {"a", "b"}),
        ({"grammar": 'root ::= "a" [0-9] ("b" | "c"){2}'}, lambda said: re.fullmatch("a[0-9][bc]{2}", said)),
        (
            {"grammar": 'start: NUM ":" NUM\nNUM: /[0-9]{1,4}/'},
            lambda said: re.fullmatch("[0-9]{1,4}:[0-9]{1,4}", said),
        ),
    ],
)
def test_the_form_is_kept_and_the_end_token_ends_it(store: GrammarStore, form: dict, fits) -> None:
    run = GrammarRun(store)
    for seed in range(12):
        run.add(f"r{seed}", PROMPT, params(seed, **form))
    run.finish()
    said = {text(run, f"r{seed}") for seed in range(12)}
    assert all(map(fits, said)), said
    assert len(said) > 1
    for seed in range(12):
        assert run.reason(f"r{seed}") == "stop"
        assert run.tokens(f"r{seed}")[-1] == EOS


def test_a_grammar_that_is_kept_is_compiled_ahead_and_never_dropped(tokenizer: Path) -> None:
    store = GrammarStore(tokenizer, VOCAB, kept=1)
    try:
        form, ends = StructuredOutputsParams(regex="a+"), (EOS,)
        store.keep(form, ends)
        kept = store.prepare(form, ends)
        for i in range(4):
            store.prepare(StructuredOutputsParams(regex=f"b{{{i + 1}}}"), ends).result(60)
        assert kept.done()
        assert store.prepare(StructuredOutputsParams(regex="a+"), ends) is kept
    finally:
        store.close()


def test_any_json_object(store: GrammarStore) -> None:
    run = GrammarRun(store)
    bias = {LETTERS.index("}"): 3.0}
    for seed in range(8):
        wanted = SamplingParams(
            temperature=1, seed=seed, max_tokens=60, logit_bias=bias, structured_outputs={"json_object": True}
        )
        run.add(f"r{seed}", PROMPT, wanted)
    run.finish()
    complete = [text(run, f"r{seed}") for seed in range(8) if run.reason(f"r{seed}") == "stop"]
    assert complete
    assert all(isinstance(json.loads(said), dict) for said in complete)


def test_neighbours_are_left_alone(store: GrammarStore) -> None:
    alone, beside = GrammarRun(store), GrammarRun(store)
    free = SamplingParams(temperature=1, seed=3, max_tokens=30, ignore_eos=True)
    alone.add("free", PROMPT, free)
    beside.add("free", PROMPT, free)
    for seed in range(4):
        beside.add(f"r{seed}", [1, 2, seed], params(seed, regex="[a-f]{20}"))
    assert alone.finish().tokens("free") == beside.finish().tokens("free")
    assert all(re.fullmatch("[a-f]{20}", text(beside, f"r{seed}")) for seed in range(4))


def test_preemption_changes_nothing(store: GrammarStore) -> None:
    roomy, tight = GrammarRun(store), GrammarRun(store, num_blocks=16)
    for run in (roomy, tight):
        for seed in range(6):
            run.add(f"r{seed}", [seed] * 9, params(seed, regex="([a-f][0-9]){16}"))
        run.finish()
    assert tight.engine.stats().num_preemptions > 0
    for seed in range(6):
        assert tight.tokens(f"r{seed}") == roomy.tokens(f"r{seed}")
        assert re.fullmatch("([a-f][0-9]){16}", text(tight, f"r{seed}"))


def test_each_of_n_follows_its_own_way(store: GrammarStore) -> None:
    run = GrammarRun(store)
    wanted = SamplingParams(n=6, temperature=2, seed=5, max_tokens=30, structured_outputs={"regex": "[a-p]{2}[0-9]{3}"})
    run.add("n", PROMPT, wanted)
    run.finish()
    said = [text(run, "n", index) for index in range(6)]
    assert all(re.fullmatch("[a-p]{2}[0-9]{3}", one) for one in said)
    assert len(set(said)) > 1


@pytest.mark.parametrize("fields", [{"ignore_eos": True}, {"min_tokens": 20}])
def test_a_complete_form_ends_though_the_request_would_go_on(store: GrammarStore, fields: dict) -> None:
    run = GrammarRun(store)
    run.add("r", PROMPT, SamplingParams(temperature=0, max_tokens=30, structured_outputs={"choice": ["abc"]}, **fields))
    run.finish()
    assert (text(run, "r"), run.reason("r")) == ("abc", "stop")


def test_min_tokens_holds_where_the_form_may_go_on(store: GrammarStore) -> None:
    run = GrammarRun(store)
    wanted = SamplingParams(temperature=1, max_tokens=30, min_tokens=10, structured_outputs={"regex": "[a-f]*"})
    run.add("r", PROMPT, wanted)
    run.finish()
    assert re.fullmatch("[a-f]{10,}", text(run, "r"))


def test_a_form_that_the_request_forbids_fails_alone(store: GrammarStore) -> None:
    run = GrammarRun(store)
    allowed = SamplingParams(temperature=0, allowed_token_ids=[1], structured_outputs={"regex": "a[0-9]"})
    run.add("bad", PROMPT, allowed)
    run.add("good", PROMPT, params(regex="[a-f]{5}"))
    run.finish()
    assert run.reason("bad") == "error"
    assert "structured_outputs" in run._of("bad", 0)[-1].error
    assert re.fullmatch("[a-f]{5}", text(run, "good"))


def test_a_grammar_that_fails_midway_fails_alone(tokenizer: Path) -> None:
    """Here: tokens that it did not allow, as if the engine had lost them."""
    vocabulary = Vocabulary(tokenizer, VOCAB, (EOS,))
    grammar = Grammar(StructuredOutputsParams(regex="[a-f]{4}"), vocabulary)
    wrong, right = grammar.matcher(), grammar.matcher()
    logits = np.zeros((3, VOCAB), np.float32)
    specs = [
        SampleSpec(seq_id, SamplingParams(temperature=0), (1,), output, 0, (EOS,), (), matcher)
        for seq_id, output, matcher in ((0, [20], wrong), (1, [2], right), (2, [20], None))
    ]
    tokens = Sampler().sample(logits, [(spec,) for spec in specs])
    assert "grammar failed" in (tokens[0].error or "")
    assert [token.error for token in tokens[1:]] == [None, None]
    assert tokens[1].token_id < 6


def test_the_mask_of_a_padded_vocabulary(tokenizer: Path) -> None:
    matcher = Grammar(StructuredOutputsParams(regex="[a-c]"), Vocabulary(tokenizer, VOCAB, (EOS,))).matcher()
    logits = np.full((1, VOCAB + 101), 2.0, np.float32)
    logits[0, 5:] = 9
    spec = SampleSpec(0, SamplingParams(temperature=0), (1,), [], 0, (EOS,), (), matcher)
    assert Sampler().sample(logits, [(spec,)])[0].token_id == 0


def test_a_matcher_follows_its_tokens_and_not_the_calls(tokenizer: Path) -> None:
    grammar = Grammar(StructuredOutputsParams(regex="a[0-9]b"), Vocabulary(tokenizer, VOCAB, (EOS,)))
    history = [0, 16, 1]
    steps = grammar.matcher()
    masks = [steps.allowed(history[:length]) for length in range(4)]
    assert steps.is_complete
    for length in range(4):
        assert grammar.matcher().allowed(history[:length]) == masks[length]  # caught up at once
        assert steps.allowed(history[:length]) == masks[length]  # gone back


class SlowStore(GrammarStore):
    """Its grammars are ready when the test says so."""

    def __init__(self, tokenizer: Path) -> None:
        super().__init__(tokenizer, VOCAB)
        self.go = threading.Event()

    def _compile(self, wanted: StructuredOutputsParams, eos_token_ids: tuple[int, ...]):
        assert self.go.wait(60)
        return super()._compile(wanted, eos_token_ids)


def test_nobody_waits_while_a_grammar_is_compiled(tokenizer: Path) -> None:
    store = SlowStore(tokenizer)
    run = GrammarRun(store)
    run.add("slow", PROMPT, params(regex="[a-f]{3}"))
    run.add("free", PROMPT, SamplingParams(temperature=0, max_tokens=5, ignore_eos=True))
    for _ in range(8):
        run.step()
    assert run.reason("free") == "length"
    assert run.engine.has_unfinished
    assert run.step() == []
    store.go.set()
    deadline = time.monotonic() + 60
    while run.engine.has_unfinished and time.monotonic() < deadline:
        run.step()
    assert re.fullmatch("[a-f]{3}", text(run, "slow"))
    store.close()


def test_a_request_that_is_aborted_while_its_grammar_is_compiled(tokenizer: Path) -> None:
    store = SlowStore(tokenizer)
    run = GrammarRun(store)
    run.add("slow", PROMPT, params(regex="[a-f]{3}"))
    with pytest.raises(RequestError, match="not finished yet"):
        run.add("slow", PROMPT, params(regex="[a-f]{3}"))
    run.engine.abort("slow")
    assert not run.engine.has_unfinished
    store.go.set()
    store.close()


def test_what_cannot_be_compiled_ends_its_request_only(tokenizer: Path) -> None:
    store = SlowStore(tokenizer)
    run = GrammarRun(store)
    wanted = SamplingParams(n=2, structured_outputs={"regex": "("})
    run.add("bad", PROMPT, wanted)
    run.add("free", PROMPT, SamplingParams(temperature=0, max_tokens=5, ignore_eos=True))
    store.go.set()
    deadline = time.monotonic() + 60
    while run.engine.has_unfinished and time.monotonic() < deadline:
        run.step()
    assert [run.reason("bad", index) for index in range(2)] == ["error", "error"]
    assert run.reason("free") == "length"
    with pytest.raises(RequestError, match="cannot be used") as refused:
        run.add("again", PROMPT, wanted)
    assert refused.value.param == "structured_outputs"
    store.close()


def test_too_many_wait_for_their_grammars(tokenizer: Path) -> None:
    store = SlowStore(tokenizer)
    run = GrammarRun(store, max_waiting=2)
    for number in range(2):
        run.add(f"r{number}", PROMPT, params(regex="[a-f]{3}"))
    with pytest.raises(QueueFullError):
        run.add("r2", PROMPT, params(regex="[a-f]{3}"))
    store.go.set()
    store.close()


def test_equal_forms_are_compiled_once_and_old_ones_forgotten(tokenizer: Path) -> None:
    store = GrammarStore(tokenizer, VOCAB, kept=2)

    def prepare(regex: str) -> Future:
        return store.prepare(StructuredOutputsParams(regex=regex), (EOS,))

    first = prepare("a")
    assert prepare("a") is first
    prepare("b")
    prepare("a")
    prepare("c")  # "b" has not been used for the longest time
    assert prepare("a") is first
    assert first.result(60).matcher() is not first.result().matcher()
    store.close()


def test_an_engine_without_grammars_says_so() -> None:
    run = GrammarRun(None)
    with pytest.raises(RequestError, match="no structured outputs"):
        run.add("r", PROMPT, params(regex="a"))


@pytest.mark.parametrize(
    ("form", "message"),
    [
        ({"regex": "("}, "cannot be used"),
        ({"regex": "é"}, "nothing matches|cannot be used"),
        ({"grammar": "start: ("}, "cannot be used"),
        ({"grammar": 'root ::= "a" ('}, "cannot be read"),
        ({"json": {"type": "object", "not": {}}}, 'Unimplemented keys: \\["not"\\]'),
        ({"json": {"$ref": "#"}}, "nothing matches it"),
        ({"json": {"type": "nonsense"}}, "Invalid type"),
    ],
)
def test_what_is_no_grammar_is_refused(tokenizer: Path, form: dict, message: str) -> None:
    with pytest.raises(RequestError, match=message) as refused:
        Grammar(StructuredOutputsParams(**form), Vocabulary(tokenizer, VOCAB, (EOS,)))
    assert refused.value.param == "structured_outputs"
    assert len(refused.value.message) < 400


def test_a_model_without_an_end_token(tokenizer: Path) -> None:
    with pytest.raises(RequestError, match="no end token"):
        Vocabulary(tokenizer, VOCAB, ())


def test_a_tokenizer_that_is_not_made_of_bytes(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(RequestError, match="not available with this model's tokenizer"):
        Vocabulary(tmp_path / "tokenizer.json", VOCAB, (EOS,))


@pytest.mark.parametrize(
    "form",
    [
        {},
        {"regex": "a", "choice": ["b"]},
        {"regex": ""},
        {"regex": 3},
        {"choice": []},
        {"choice": "abc"},
        {"choice": ["a", 3]},
        {"choice": [""]},
        {"choice": ["a"] * 5000},
        {"json": "{"},
        {"json": 3},
        {"json": "[" * 100_000},
        {"json": True},
        {"json": {"a": object()}},
        {"json_object": "yes"},
        {"regex": "a" * (1 << 19)},
        {"json": '"' + "a" * (1 << 19) + '"'},
    ],
)
def test_what_is_no_form_is_refused_before_anything_is_compiled(form: dict) -> None:
    with pytest.raises(RequestError) as refused:
        StructuredOutputsParams(**form)
    assert refused.value.param == "structured_outputs"


def test_sampling_params_take_a_form_as_a_dictionary() -> None:
    made = SamplingParams(structured_outputs={"json": {"type": "object"}})
    assert made.structured_outputs == StructuredOutputsParams(json='{"type":"object"}')
    assert hash(made.structured_outputs) == hash(StructuredOutputsParams(json={"type": "object"}))
    for wrong in ({"xml": "a"}, "regex", 3):
        with pytest.raises(RequestError, match="structured_outputs"):
            SamplingParams(structured_outputs=wrong)  # type: ignore[arg-type]

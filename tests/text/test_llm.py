"""The library's face, over the real scheduler and a model that is a function."""

import inspect
import random
import re
import signal
from pathlib import Path

import pytest

from pllm import LLM, SamplingParams
from pllm.runtime.errors import ContextLengthExceededError, RequestError, UserInputError

from .fake_model import FakeCore


@pytest.fixture
def llm(artifact: Path) -> LLM:
    return LLM(str(artifact))


def test_the_seed_example(artifact: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    llm = LLM(model=str(artifact))
    sampling_params = SamplingParams(temperature=0.8, top_p=0.95, max_tokens=32)
    outputs = llm.generate(["你好、世界", "今天天气很好"], sampling_params)
    for output in outputs:
        assert output.outputs[0].text.startswith(output.prompt)
    shown = capsys.readouterr()
    assert shown.out == ""
    assert re.search(r"Processed prompts: .* 2/2 0:00:\d\d input [\d.]+ toks/s, output [\d.]+ toks/s", shown.err)


def test_results_come_in_input_order_whatever_ends_first(llm: LLM) -> None:
    prompts = [f"prompt {i}" for i in range(20)]
    params = [SamplingParams(max_tokens=random.Random(i).randint(1, 9)) for i in range(20)]
    outputs = llm.generate(prompts, params, use_tqdm=False)
    assert [output.prompt for output in outputs] == prompts
    assert [len(output.outputs[0].token_ids) for output in outputs] == [p.max_tokens for p in params]
    assert all(output.finished and output.outputs[0].finish_reason == "length" for output in outputs)
    assert llm.get_metrics().num_running == llm.get_metrics().num_waiting == 0


def test_every_form_of_a_prompt(llm: LLM) -> None:
    ids = llm.get_tokenizer().encode("The quick")
    one = SamplingParams(max_tokens=2)
    for prompts in (
        "The quick",
        ids,
        {"prompt": "The quick"},
        {"prompt_token_ids": ids},
        tuple(ids),
        ["The quick"],
        [ids],
    ):
        (output,) = llm.generate(prompts, one, use_tqdm=False)
        assert output.prompt_token_ids == ids
        assert output.outputs[0].token_ids == ids[:2]
        assert output.prompt == (
            None if isinstance(prompts, tuple | list) and prompts != ["The quick"] else output.prompt
        )
    assert llm.generate([], one) == []
    mixed = llm.generate(["The quick", ids, {"prompt": "The", "prompt_token_ids": ids}], one, use_tqdm=False)
    assert [output.prompt for output in mixed] == ["The quick", None, "The"]


@pytest.mark.parametrize(
    "prompt", [3.5, [["a"]], {"text": "a"}, [1.5], [True, 2], {"prompt_token_ids": ["a"]}, [[0, -1]], [[10**6]], [[]]]
)
def test_what_is_no_prompt(llm: LLM, prompt: object) -> None:
    with pytest.raises(RequestError):
        llm.generate(prompt, use_tqdm=False)  # type: ignore[arg-type]


def test_everything_is_checked_before_anything_runs(llm: LLM) -> None:
    with pytest.raises(
        ContextLengthExceededError, match=r"maximum context length is 128 tokens. However, your prompt contains 200"
    ):
        llm.generate(["fine", {"prompt_token_ids": [65] * 200}], use_tqdm=False)
    with pytest.raises(RequestError, match="3 sampling_params for 1 prompts"):
        llm.generate(["fine"], [SamplingParams()] * 3)
    with pytest.raises(RequestError, match="n = 5"):
        llm.generate(["fine", "fine"], [SamplingParams(), SamplingParams(n=5)])
    with pytest.raises(RequestError, match="outside the vocabulary") as caught:
        llm.generate("fine", SamplingParams(logit_bias={10**6: 1}))
    assert caught.value.param == "logit_bias"
    assert FakeCore.last.runner.num_steps == 0
    assert llm.get_metrics().num_waiting == 0


def test_a_mistake_in_the_last_of_many_stops_the_first(artifact: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where the queue is too short for all of them at once."""
    monkeypatch.setattr(FakeCore, "config", {"max_waiting": 0})
    llm = LLM(str(artifact))
    with pytest.raises(RequestError, match="n = 5"):
        llm.generate(["fine"] * 9, [*[SamplingParams()] * 8, SamplingParams(n=5)], use_tqdm=False)
    assert FakeCore.last.runner.num_steps == 0


def test_answers_are_limited_to_the_context(llm: LLM) -> None:
    (output,) = llm.generate({"prompt_token_ids": [65] * 120}, SamplingParams(max_tokens=None), use_tqdm=False)
    assert len(output.outputs[0].token_ids) == 8
    (output,) = llm.generate({"prompt_token_ids": [65] * 120}, SamplingParams(max_tokens=10_000), use_tqdm=False)
    assert (len(output.outputs[0].token_ids), output.outputs[0].finish_reason) == (8, "length")


def test_more_prompts_than_the_queue_holds(artifact: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(FakeCore, "config", {"max_waiting": 2})
    outputs = LLM(str(artifact)).generate([f"{i}" for i in range(50)], SamplingParams(max_tokens=3), use_tqdm=False)
    assert [output.prompt for output in outputs] == [f"{i}" for i in range(50)]
    assert all(output.finished for output in outputs)


def test_none_takes_the_models_own_parameters(llm: LLM) -> None:
    assert llm.get_default_sampling_params() == SamplingParams(temperature=0.0)
    assert len(llm.generate("abc", use_tqdm=False)[0].outputs[0].token_ids) == 16


def test_streams_side_by_side_lose_nothing(llm: LLM) -> None:
    params = SamplingParams(max_tokens=20)
    prompts = ["The quick brown fox", "no animal "]
    whole = [output.outputs[0].text for output in llm.generate(prompts, params, use_tqdm=False)]
    pairs = zip(*(llm.stream(prompt, params) for prompt in prompts), strict=True)
    assert ["".join(delta.text for delta in deltas) for deltas in zip(*pairs, strict=True)] == whole

    stream = llm.stream(prompts[0], SamplingParams(max_tokens=60))
    begun = next(stream).text
    (other,) = llm.generate(prompts[1], params, use_tqdm=False)
    assert other.outputs[0].text == whole[1]
    assert llm.get_metrics().num_running == 1, "the stream is not run to its end for a call beside it"
    text = begun + "".join(delta.text for delta in stream)
    assert text == llm.generate(prompts[0], SamplingParams(max_tokens=60), use_tqdm=False)[0].outputs[0].text


def test_stop_strings_end_the_sequence_in_the_engine_too(llm: LLM) -> None:
    stops_early = SamplingParams(max_tokens=100, stop=["fox"])
    first, second = llm.generate(
        ["The quick brown fox", "no animal "], [stops_early, SamplingParams(max_tokens=30)], use_tqdm=False
    )
    answer = first.outputs[0]
    assert (answer.text, answer.finish_reason, answer.stop_reason) == ("The quick brown ", "stop", "fox")
    assert second.outputs[0].finish_reason == "length"
    assert FakeCore.last.runner.num_steps <= 32, "the stopped sequence did not go on for 100 steps"
    assert llm.get_metrics().kv_blocks_used == 0


def test_end_tokens(artifact: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The end token is among the ids and not in the text; generation.json's end counts as much as the tokenizer's."""
    llm = LLM(str(artifact))
    tokenizer = llm.get_tokenizer()
    end = tokenizer.eos_token_id
    prompt = [*tokenizer.encode("ab"), end]
    (output,) = llm.generate(prompt, SamplingParams(max_tokens=30), use_tqdm=False)
    assert output.outputs[0].token_ids == prompt
    assert (output.outputs[0].text, output.outputs[0].finish_reason, output.outputs[0].stop_reason) == (
        "ab",
        "stop",
        None,
    )
    assert tokenizer.id_to_token(331) == "</s>"
    (output,) = llm.generate([65, 331], SamplingParams(max_tokens=30, skip_special_tokens=False), use_tqdm=False)
    assert output.outputs[0].token_ids == [65, 331]
    (output,) = llm.generate([65, 66], SamplingParams(max_tokens=30, stop_token_ids=[66]), use_tqdm=False)
    assert (output.outputs[0].text, output.outputs[0].stop_reason) == (tokenizer.decode([65]), 66)


def test_n_answers_and_logprobs(llm: LLM) -> None:
    (output,) = llm.generate(
        "The quick", SamplingParams(n=3, max_tokens=2, logprobs=2, prompt_logprobs=0), use_tqdm=False
    )
    assert [answer.index for answer in output.outputs] == [0, 1, 2]
    for answer in output.outputs:
        assert answer.cumulative_logprob == -1.0
        for token_id, position in zip(answer.token_ids, answer.logprobs, strict=True):
            assert list(position) == [token_id, 1]
            assert position[token_id].decoded_token == llm.get_tokenizer().token_text(token_id)
            assert (position[token_id].logprob, position[1].rank) == (-0.5, 2)
    assert output.prompt_logprobs[0] is None
    assert [list(position) for position in output.prompt_logprobs[1:]] == [[t] for t in output.prompt_token_ids[1:]]
    (plain,) = llm.generate("The quick", SamplingParams(max_tokens=2), use_tqdm=False)
    assert plain.outputs[0].logprobs is plain.outputs[0].cumulative_logprob is plain.prompt_logprobs is None


def test_metrics_of_a_request(llm: LLM) -> None:
    (output,) = llm.generate("The quick brown", SamplingParams(max_tokens=3), use_tqdm=False)
    times = output.metrics
    assert times.arrival_time <= times.first_scheduled_time <= times.first_token_time
    assert times.first_token_time <= times.last_token_time <= times.finished_time
    assert times.time_in_queue == times.first_scheduled_time - times.arrival_time
    assert times.time_to_first_token == times.first_token_time - times.arrival_time
    assert output.num_cached_tokens == 0


def test_a_prefix_seen_before_is_found_until_the_cache_is_reset(llm: LLM) -> None:
    prompt = {"prompt_token_ids": list(range(60, 100))}
    found = [llm.generate(prompt, SamplingParams(max_tokens=1), use_tqdm=False)[0].num_cached_tokens for _ in range(2)]
    assert found == [0, 32]
    assert llm.reset_prefix_cache() is True
    assert llm.generate(prompt, SamplingParams(max_tokens=1), use_tqdm=False)[0].num_cached_tokens == 0


def test_seeds(artifact: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two objects with one seed answer alike, requests among themselves do not, and a request's own seed wins."""

    def answers(**options: object) -> list[list[int]]:
        monkeypatch.setattr(
            FakeCore, "next_token", staticmethod(lambda prompt, output, seed: (seed >> len(output)) % 200)
        )
        outputs = LLM(str(artifact), **options).generate(["a", "a", "a"], SamplingParams(max_tokens=8), use_tqdm=False)
        return [output.outputs[0].token_ids for output in outputs]

    assert answers() == answers() != answers(seed=1)
    assert len({tuple(ids) for ids in answers()}) == 3
    assert answers(seed=None) != answers(seed=None)
    own = SamplingParams(max_tokens=8, seed=7)
    assert LLM(str(artifact)).generate("a", own, use_tqdm=False)[0].outputs[0].token_ids == (
        LLM(str(artifact), seed=5).generate("a", own, use_tqdm=False)[0].outputs[0].token_ids
    )


def test_bad_words_reach_the_engine_as_token_ids(llm: LLM) -> None:
    words = llm._intake.bad_words_token_ids(["fox", " the", "qz"])
    decoded = [llm.get_tokenizer().decode(list(word)) for word in words]
    assert "fox" in decoded
    assert "the" in decoded
    assert all(word.strip() in {"fox", "the", "qz"} for word in decoded)
    assert len(set(words)) == len(words)


def test_chat(llm: LLM) -> None:
    messages = [{"role": "user", "content": "hi"}]
    (output,) = llm.chat(messages, SamplingParams(max_tokens=3), use_tqdm=False)
    assert output.prompt == "<|im_start|>user:hi<|im_end|><|im_start|>"
    both = llm.chat(
        [messages, [{"role": "user", "content": [{"type": "text", "text": "x"}]}]], SamplingParams(max_tokens=1)
    )
    assert [output.prompt for output in both][1] == "<|im_start|>user:x<|im_end|><|im_start|>"
    (output,) = llm.chat(
        messages, chat_template="{{ bos_token }}{{ x }}!", chat_template_kwargs={"x": "y"}, use_tqdm=False
    )
    assert output.prompt == "y!"
    (output,) = llm.chat(
        [*messages, {"role": "assistant", "content": "so"}],
        add_generation_prompt=False,
        continue_final_message=True,
        use_tqdm=False,
    )
    assert output.prompt.endswith("assistant:so")
    with pytest.raises(RequestError, match="reads text only"):
        llm.chat([{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}])
    with pytest.raises(RequestError, match="at least one message"):
        llm.chat([[]])


def test_tool_calls_reach_the_template_as_objects(llm: LLM) -> None:
    call = {"type": "function", "function": {"name": "f", "arguments": '{"a": 1}'}}
    messages = [{"role": "assistant", "content": None, "tool_calls": [call]}]
    prompt = llm.chat_prompt(
        messages,
        chat_template=llm.get_tokenizer().chosen_template("{{ messages[0].tool_calls[0].function.arguments.a + 1 }}"),
    )
    assert prompt.text == "2"


def test_stream(llm: LLM) -> None:
    params = SamplingParams(max_tokens=12)
    whole = llm.generate("a 😀 b", params, use_tqdm=False)[0].outputs[0]
    deltas = list(llm.stream("a 😀 b", params))
    assert "".join(delta.text for delta in deltas) == whole.text
    assert [token for delta in deltas for token in delta.token_ids] == whole.token_ids
    assert deltas[-1].finish_reason == "length"
    for _ in llm.stream("left early", SamplingParams(max_tokens=100)):
        break
    assert llm.get_metrics().kv_blocks_used == 0


def test_ctrl_c_takes_effect_between_steps_and_leaves_nothing_running(
    artifact: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(prompt, output, seed: int) -> int:
        if len(output) == 3 and prompt[0] == first:
            signal.raise_signal(signal.SIGINT)
        return 65

    monkeypatch.setattr(FakeCore, "next_token", staticmethod(interrupted))
    llm = LLM(str(artifact))
    first = llm.get_tokenizer().encode("a")[0]
    with pytest.raises(KeyboardInterrupt):
        llm.generate(["a", "b"], use_tqdm=False)
    assert llm._engine.num_unfinished == 0
    assert llm.get_metrics().kv_blocks_used == 0
    assert len(llm.generate("c", SamplingParams(max_tokens=5), use_tqdm=False)[0].outputs[0].token_ids) == 5


def test_the_signature_is_vllms() -> None:
    parameters = inspect.signature(LLM).parameters
    wanted = {
        "tokenizer": None,
        "dtype": "auto",
        "quantization": None,
        "seed": 0,
        "gpu_memory_utilization": 0.92,
        "max_model_len": None,
        "max_num_seqs": None,
        "tensor_parallel_size": 1,
        "revision": None,
        "chat_template": None,
    }
    assert {name: parameters[name].default for name in wanted} == wanted
    assert parameters["model"].kind is inspect.Parameter.POSITIONAL_OR_KEYWORD


def test_an_unknown_keyword_names_the_nearest(artifact: Path) -> None:
    with pytest.raises(TypeError, match=r"LLM has no keyword 'max_model_length'. Did you mean 'max_model_len'"):
        LLM(str(artifact), max_model_length=5)


def test_options(artifact: Path, tmp_path: Path) -> None:
    LLM(
        str(artifact), max_num_seqs=2, memory="1GiB", threads=1, enable_prefix_caching=False, gpu_memory_utilization=0.5
    ).close()
    assert FakeCore.opened_with == {
        "artifact": artifact,
        "max_num_seqs": 2,
        "memory": "1GiB",
        "threads": 1,
        "enable_prefix_caching": False,
    }
    assert FakeCore.last.is_closed
    with pytest.raises(UserInputError, match="tensor_parallel_size=2: a model runs on one device"):
        LLM(str(artifact), tensor_parallel_size=2)
    with pytest.raises(UserInputError, match="dtype was decided when the artifact"):
        LLM(str(artifact), dtype="float32")
    with pytest.raises(UserInputError, match="max_model_len=500 is more than the artifact was built for"):
        LLM(str(artifact), max_model_len=500)
    assert FakeCore.last.is_closed, "an engine that was opened before the mistake was seen is closed"
    with pytest.raises(ContextLengthExceededError, match="context length is 4 tokens"):
        LLM(str(artifact), max_model_len=4).generate([65] * 5)
    with pytest.raises(UserInputError, match="is no model: give an artifact directory"):
        LLM(str(tmp_path / "nothing"))
    (tmp_path / "mine.jinja").write_text("mine")
    with LLM(str(artifact), chat_template=str(tmp_path / "mine.jinja")) as llm:
        assert llm.chat([{"role": "user", "content": "x"}], use_tqdm=False)[0].prompt == "mine"


def test_the_face_has_what_it_names() -> None:
    import pllm

    assert {"LLM", "AsyncLLM", "SamplingParams", "RequestOutput", "CompletionOutput"} <= set(pllm.__all__)
    assert all(getattr(pllm, name) for name in pllm.__all__)
    with pytest.raises(AttributeError, match="no attribute 'LMM'"):
        pllm.LMM  # noqa: B018

"""``pllm chat`` over a pipe."""

import io
import signal
from argparse import ArgumentParser
from pathlib import Path

import pytest

from pllm.runtime import chat_cli
from pllm.runtime.errors import UserInputError

from .fake_model import FakeCore


def talk(artifact: Path, typed: str, monkeypatch: pytest.MonkeyPatch, *flags: str) -> int:
    parser = ArgumentParser()
    chat_cli.add_arguments(parser)
    monkeypatch.setattr("sys.stdin", io.StringIO(typed))
    return chat_cli.main(parser.parse_args([str(artifact), *flags]))


def test_a_conversation(artifact: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """The fake model repeats its prompt, up to the first end token: the template's first message."""
    assert talk(artifact, "你好\n\n  second  \n/clear\nthird\n/exit\nnever\n", monkeypatch) == 0
    shown = capsys.readouterr()
    assert shown.out == "user:你好\nuser:你好\nuser:third\n"
    assert shown.err == ""
    assert FakeCore.last.is_closed


def test_flags(artifact: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    talk(artifact, "a\n/clear\nb\n", monkeypatch, "--system", "be brief", "--temperature", "0.5")
    assert capsys.readouterr().out == "system:be brief\n" * 2
    talk(artifact, "abcdef\n", monkeypatch, "--max-tokens", "2")
    assert capsys.readouterr().out == "u\n"  # <|im_start|> has no text


def test_a_flag_out_of_range_is_said_before_anything_is_opened(artifact: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for flag, value in (("--temperature", "9"), ("--max-tokens", "0")):
        with pytest.raises(UserInputError, match=f"^{flag}: ") as caught:
            talk(artifact / "nothing", "a\n", monkeypatch, flag, value)
        assert caught.value.exit_code == 2


def test_a_full_context_is_said_and_the_conversation_goes_on(
    artifact: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert talk(artifact, "word " * 200 + "\nshort\n", monkeypatch) == 0
    shown = capsys.readouterr()
    assert "maximum context length is 128 tokens" in shown.err
    assert shown.out == "user:short\n"


def test_ctrl_c_stops_the_answer_only(
    artifact: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(prompt, output, seed: int) -> int:
        if len(output) == 2 and len(prompt) < 16:
            signal.raise_signal(signal.SIGINT)
        return prompt[len(output)]

    monkeypatch.setattr(FakeCore, "next_token", staticmethod(interrupted))
    assert talk(artifact, "abc\ndef\n", monkeypatch) == 0
    assert capsys.readouterr().out == "u\nuser:abc\n"

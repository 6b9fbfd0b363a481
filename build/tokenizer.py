"""Tokenizer: saved as transformers loads it, and compared with it: the runtime's own gives the same ids and text, and
renders conversations to the same prompts.

A tokenizer.json alone does not say how transformers encodes: some of its classes (LlamaTokenizer is one) keep only the
vocabulary of it and build the rest anew. So the artifact holds what transformers made of the checkpoint's files.
"""

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pllm.build.checkpoint import Checkpoint
from pllm.build.model_source import load_tokenizer
from pllm.build.pipeline import Build
from pllm.build.progress import StageProgress
from pllm.runtime.errors import ArtifactError, BuildError, CheckpointError, RequestError
from pllm.runtime.tokenizer import Tokenizer

__all__ = ["save_tokenizer"]

_FOLDER = "tokenizer"
_FIRST = "tokenizer.json"

_TEXTS = (
    "",
    " ",
    "The quick brown fox doesn't jump: it's 3.14 o'clock , isn't it ?",
    "  two  spaces\tand a tab\n\n\nand lines \r\n",
    "你好、世界。 naïve café über straße Привет हिन्दी العربية 한국어",
    "a\u0301 \ufb01 \u2460 \u00bd \u200b \U0001f600 \U0001f469\u200d\U0001f469\u200d\U0001f467 \x00\x7f",
    "def f(x): return {'a': [x ** 2, 0x1F, 1_000_000]}  # 1234567890",
)


@dataclass(frozen=True, slots=True)
class _Probe:
    """A conversation that is rendered by both."""

    messages: Sequence[Mapping[str, Any]]
    tools: Sequence[Mapping[str, Any]] | None = None
    add_generation_prompt: bool = True


_USER = {"role": "user", "content": "What is 17 + 25?"}
_TOOL = {
    "type": "function",
    "function": {
        "name": "add",
        "description": "Adds two numbers.",
        "parameters": {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]},
    },
}
_CALL = {"type": "function", "function": {"name": "add", "arguments": {"a": 17}}}
_PROBES = (
    _Probe([_USER]),
    _Probe([{"role": "system", "content": "Be brief."}, _USER]),
    _Probe([_USER, {"role": "assistant", "content": " 42 \n"}, {"role": "user", "content": "你好 😀"}]),
    _Probe([_USER, {"role": "assistant", "content": "42"}], add_generation_prompt=False),
    _Probe([_USER], [_TOOL]),
    _Probe(
        [_USER, {"role": "assistant", "content": "", "tool_calls": [_CALL]}, {"role": "tool", "content": "42"}], [_TOOL]
    ),
)


def save_tokenizer(build: Build, progress: StageProgress) -> None:
    """Write the artifact's tokenizer.

    Raises CheckpointError for one that transformers cannot load, and for a chat template that leaves its sandbox or
    its limits; BuildError where the runtime would encode, decode or render otherwise than transformers.
    """
    checkpoint, folder = build.checkpoint, build.staging.path(f"{_FOLDER}/{_FIRST}").parent
    theirs = load_tokenizer(_plain_copy(checkpoint, build.staging.scratch / _FOLDER), checkpoint.label)
    theirs.save_pretrained(folder)
    names = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    build.tokenizer = tuple(f"{_FOLDER}/{name}" for name in sorted(names, key=lambda name: name != _FIRST))
    ours = Tokenizer.open(folder)
    rendered = _compare_templates(checkpoint, ours, theirs, progress)
    texts = [*_TEXTS, *(f"one {token}two {token} three" for token in ours.special_tokens.values()), *rendered]
    for text in texts:
        _compare_text(checkpoint, ours, theirs, text)
    progress.say(f"{type(theirs).__name__}: {len(ours)} tokens; {len(texts)} texts encoded as transformers does")


def _plain_copy(checkpoint: Checkpoint, folder: Path) -> Path:
    """A directory of what the checkpoint vouches for, and of nothing else that transformers might pick up."""
    folder.mkdir(parents=True)
    for name in ("config.json", *checkpoint.tokenizer_files):
        shutil.copyfile(checkpoint.directory / name, folder / name)
    return folder


def _compare_templates(checkpoint: Checkpoint, ours: Tokenizer, theirs: Any, progress: StageProgress) -> list[str]:
    """The prompts that both made of the probes. Ours renders first: it has limits, and transformers has none."""
    if ours.chat_template is None:
        progress.say("no chat template: conversations need one given with --chat-template")
        return []
    try:
        ours.chat_template.check()
    except ArtifactError as error:
        raise CheckpointError(f"{checkpoint.label}: {error}") from None
    prompts, refused = [], ""
    for probe in _PROBES:
        before, reason = _render(checkpoint, ours, probe)
        expected = _render_theirs(theirs, probe)
        after, _ = _render(checkpoint, ours, probe)
        if expected not in (before, after):  # a template may write the time
            raise BuildError(
                f"{checkpoint.label}: its chat template gives {before!r} here and {expected!r} with transformers "
                f"{'' if reason is None else f'({reason}) '}for {list(probe.messages)!r}"
            )
        if before is None:
            refused = reason or refused
        else:
            prompts.append(before)
    shown = f"; it refuses the others: {refused}" if refused else ""
    progress.say(f"chat template: {len(prompts)} of {len(_PROBES)} conversations rendered as transformers does{shown}")
    return prompts


def _render(checkpoint: Checkpoint, ours: Tokenizer, probe: _Probe) -> tuple[str | None, str | None]:
    """The prompt; or None and why, where the template does not take this conversation, as it may."""
    assert ours.chat_template is not None
    try:
        text = ours.chat_template.render(probe.messages, probe.tools, add_generation_prompt=probe.add_generation_prompt)
    except RequestError as error:
        if error.code in ("chat_template_refused", "chat_template_limit"):
            raise CheckpointError(
                f"{checkpoint.label}: {error} Do not use this model, or give its chat template a safe form."
            ) from None
        return None, str(error)
    return text, None


def _render_theirs(theirs: Any, probe: _Probe) -> str | None:
    try:
        text: str = theirs.apply_chat_template(
            list(probe.messages),
            tools=None if probe.tools is None else list(probe.tools),
            add_generation_prompt=probe.add_generation_prompt,
            tokenize=False,
        )
    except Exception:  # a template fails in any way on a conversation that it does not expect
        return None
    return text


def _compare_text(checkpoint: Checkpoint, ours: Tokenizer, theirs: Any, text: str) -> None:
    def differs(what: str, mine: object, expected: object) -> BuildError:
        return BuildError(
            f"{checkpoint.label}: its tokenizer ({type(theirs).__name__}) cannot be served: the runtime {what}s "
            f"{text!r} to {mine!r}, and transformers to {expected!r}"
        )

    for special in (True, False):
        try:
            expected = theirs.encode(text, add_special_tokens=special)
        except Exception as error:  # the Rust side raises bare Exceptions
            raise CheckpointError(
                f"{checkpoint.label}: its tokenizer ({type(theirs).__name__}) cannot encode {text!r}: {error}"
            ) from error
        if ours.encode(text, special) != expected:
            raise differs("encode", ours.encode(text, special), expected)
    for skip in (True, False):
        back = theirs.decode(expected, skip_special_tokens=skip)
        if ours.decode(expected, skip) != back:
            raise differs("decode", ours.decode(expected, skip), back)

"""Grammars of answers: calls that a request demands or that must be right, and forms that come after thoughts."""

import json
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from pllm.runtime.lark import json_form, lark_regex, lark_text, lark_tokens
from pllm.runtime.message.hermes import CALL, CALL_END
from pllm.runtime.message.json_calls import PYTHON_TAG
from pllm.runtime.message.mistral import ARGS, TOOL_CALLS
from pllm.runtime.message.reasoning import THINK, THINK_END
from pllm.runtime.message.style import MessageStyle
from pllm.runtime.structured_outputs import StructuredOutputsParams

__all__ = ["AnswerGrammar", "CallableTool"]

_MOST_CALLS = 16
_COMMA = '", "'
_ANY_OBJECT: Final[Mapping[str, Any]] = {"type": "object"}
_NO_CALL: Final = r"/(.|\n)*/ & ~/[ \t\r\n]*(<\|python_tag\|>)?[ \t\r\n]*(\[[ \t\r\n]*)?\{(.|\n)*/"
"""A message that `JsonCallsReader` cannot take for a call."""


@dataclass(frozen=True, slots=True)
class CallableTool:
    """A function by its name, and the JSON schema of its arguments. ``strict``: they keep to it, whoever chose the
    call."""

    name: str
    parameters: Mapping[str, Any]
    strict: bool = False


class AnswerGrammar:
    """Writes grammars for one model.

    ``token_id``: the id of an added token, None where the text is no such token. ``free_ids``: added tokens that a text
    may hold anywhere (all but end tokens; those that are a style's markers are left out here).
    """

    def __init__(
        self, style: MessageStyle, token_id: Callable[[str], int | None], free_ids: Collection[int] = ()
    ) -> None:
        self._style = style
        self._token_id = token_id
        markers = set(map(token_id, style.markers))
        self._free_ids = sorted(token_id for token_id in free_ids if token_id not in markers)

    def calls(self, tools: Sequence[CallableTool], prompt: str, *, several: bool) -> StructuredOutputsParams:
        """Exactly one call of one of the tools; or ``several``, at least one."""
        rules = [*self._functions(tools), f"answer: {self._calls(several=several)}"]
        return self._after_thoughts(rules, prompt)

    def choice(
        self, tools: Sequence[CallableTool], prompt: str, *, several: bool, form: StructuredOutputsParams | None = None
    ) -> StructuredOutputsParams | None:
        """What the model likes: text or calls, or both; but a call that it begins is one of a tool that there is, with
        a JSON object, which keeps to the tool's schema where that is strict. With a ``form``: calls, or the form.

        None where nothing is to be guaranteed: the model writes no calls that a grammar can tell, or none is strict.
        """
        calls = self._style.calls
        if calls is None or calls == "pythonic":  # no schema says what Python's literals may be
            return None if form is None else self.form(form, prompt)
        functions = self._functions([tool if tool.strict else CallableTool(tool.name, _ANY_OBJECT) for tool in tools])
        if form is not None:
            # Two kinds of JSON that begin alike are one too many for llguidance's lexer; and a client's own grammar
            # has rules of its own.
            if calls == "llama3_json" or form.grammar is not None:
                return self.form(form, prompt)
            form_rule = f"form: {_form(form)}"
            return self._after_thoughts(
                [*functions, form_rule, f"answer: form | {self._calls(several=several)}"], prompt
            )
        if not any(tool.strict for tool in tools):
            return None
        return self._after_thoughts([*functions, *self._text_or_calls(several=several)], prompt)

    def form(self, form: StructuredOutputsParams, prompt: str) -> StructuredOutputsParams:
        """The form, after thoughts where the model thinks. A grammar of the client's own stands as it is."""
        if not self._style.thinks or prompt.rstrip().endswith(THINK_END) or form.grammar is not None:
            return form
        return self._after_thoughts([f"answer: {_form(form)}"], prompt)

    @property
    def _names_calls(self) -> bool:
        return self._style.calls == "mistral" and self._style.names_calls

    def _functions(self, tools: Sequence[CallableTool]) -> list[str]:
        """Rules for ``function``: a call of any of the tools, as the style writes it, without what stands around it."""
        rules = [f"arguments_{i}: %json {json_form(tool.parameters)}" for i, tool in enumerate(tools)]
        key = "arguments" if self._style.calls in ("hermes", "mistral") else "parameters"
        for i, tool in enumerate(tools):
            if self._names_calls:
                call = f"{lark_text(tool.name)} {self._marker(ARGS)} arguments_{i}"
            else:
                opening = f'{{"name": {lark_text(tool.name)}, "{key}": '
                call = f'{lark_text(opening)} arguments_{i} "}}"'
            rules.append(f"function_{i}: {call}")
        rules.append("function: " + " | ".join(f"function_{i}" for i in range(len(tools))))
        return rules

    def _calls(self, *, several: bool) -> str:
        """One call or more, with the style's markers."""
        style = self._style
        if style.calls == "hermes":
            return _repeated(f'({self._marker(CALL)} "\\n" function "\\n" {self._marker(CALL_END)})', '"\\n"', several)
        if self._names_calls:
            return _repeated(f"({self._marker(TOOL_CALLS)} function)", "", several)
        if style.calls == "mistral":
            return f'{self._marker(TOOL_CALLS)} "[" {_repeated("function", _COMMA, several)} "]"'
        return _repeated("function", '"; "', several)

    def _text_or_calls(self, *, several: bool) -> list[str]:
        """Rules for ``answer``: text in which a call's marker, be it a token or spelled out, begins a call."""
        style = self._style
        if style.calls == "llama3_json":
            tag = self._token_id(PYTHON_TAG)
            tagged = "" if tag is None else f"<[{tag}]>? "
            return [f"answer: NO_CALL | {tagged}{self._calls(several=several)}", f"NO_CALL: {_NO_CALL}"]
        start = CALL if style.calls == "hermes" else TOOL_CALLS
        rules = [f"MARKED: /(.|\\n)*{re.escape(start)}/", "marked[lazy]: MARKED", "TEXT: /(.|\\n)+/"]
        rules.append("text: (TEXT | added)*" if self._free_ids else "text: TEXT?")
        if self._free_ids:
            rules.append(f"added: {lark_tokens(self._free_ids)}")
        token = self._token_id(start)
        opening = "text marked" if token is None else f"text (marked | <[{token}]>)"
        if style.calls == "hermes":
            end, end_token = lark_text(CALL_END), self._token_id(CALL_END)
            end = end if end_token is None else f"({end} | <[{end_token}]>)"
            call = f'{opening} "\\n" function "\\n" {end}'
        elif self._names_calls:
            call = f"{opening} function"
        else:
            call = f'{opening} "[" {_repeated("function", _COMMA, several)} "]"'
        rules.append(f"call: {call}")
        if several and (style.calls == "hermes" or self._names_calls):
            rules.append(f"answer: call{{0,{_MOST_CALLS}}} text")
        else:
            rules.append("answer: text | call")
        return rules

    def _after_thoughts(self, rules: list[str], prompt: str) -> StructuredOutputsParams:
        if not self._style.thinks or prompt.rstrip().endswith(THINK_END):
            start = "start: answer"
        elif self._token_id(THINK_END) is None:
            rules.append(f"thoughts[suffix={lark_text(THINK_END)}]: /(.|\\n)*/")
            start = "thoughts SPACE answer"
        else:
            rules.append("thoughts: /(.|\\n)*/")
            start = f"thoughts {self._marker(THINK_END)} SPACE answer"
        if not start.startswith("start:"):
            rules.append("SPACE: /[ \\n]{0,4}/")
            begun = self._style.begins_with_thoughts(prompt)
            start = f"start: {start}" if begun else f"start: answer | {self._marker(THINK)} {start}"
        return StructuredOutputsParams(grammar="\n".join([start, *rules]))

    def _marker(self, text: str) -> str:
        token_id = self._token_id(text)
        return lark_text(text) if token_id is None else f"<[{token_id}]>"


def _repeated(call: str, sign: str, several: bool) -> str:
    return f"{call} ({sign} {call}){{0,{_MOST_CALLS - 1}}}" if several else call


def _form(form: StructuredOutputsParams) -> str:
    """The right side of a rule for a form that is no grammar itself."""
    if form.json is not None or form.json_object:
        schema = _ANY_OBJECT if form.json is None else json.loads(str(form.json))
        return f"%json {json_form(schema)}"
    if form.regex is not None:
        return lark_regex(form.regex)
    return " | ".join(map(lark_text, form.choice or ()))

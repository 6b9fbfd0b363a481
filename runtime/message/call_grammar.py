"""Grammars of answers: calls that a request demands, and forms that come after thoughts."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pllm.runtime.lark import json_form, lark_regex, lark_text
from pllm.runtime.message.hermes import CALL, CALL_END
from pllm.runtime.message.mistral import ARGS, TOOL_CALLS
from pllm.runtime.message.reasoning import THINK, THINK_END
from pllm.runtime.message.style import MessageStyle
from pllm.runtime.structured_outputs import StructuredOutputsParams

__all__ = ["AnswerGrammar", "CallableTool"]

_MOST_CALLS = 16
_COMMA = '", "'


@dataclass(frozen=True, slots=True)
class CallableTool:
    """A function by its name, and the JSON schema of its arguments."""

    name: str
    parameters: Mapping[str, Any]


class AnswerGrammar:
    """Writes grammars for one model. ``token_id``: the id of an added token, None where the text is no such token."""

    def __init__(self, style: MessageStyle, token_id: Callable[[str], int | None]) -> None:
        self._style = style
        self._token_id = token_id

    def calls(self, tools: Sequence[CallableTool], prompt: str, *, several: bool) -> StructuredOutputsParams:
        """Exactly one call of one of the tools; or ``several``, at least one."""

        def repeated(call: str, sign: str = "") -> str:
            return f"{call} ({sign} {call}){{0,{_MOST_CALLS - 1}}}" if several else call

        rules = [f"arguments_{i}: %json {json_form(tool.parameters)}" for i, tool in enumerate(tools)]
        style = self._style
        key = "arguments" if style.calls in ("hermes", "mistral") else "parameters"
        names_calls = style.calls == "mistral" and style.names_calls
        for i, tool in enumerate(tools):
            if names_calls:
                call = f"{lark_text(tool.name)} {self._marker(ARGS)} arguments_{i}"
            else:
                opening = f'{{"name": {lark_text(tool.name)}, "{key}": '
                call = f'{lark_text(opening)} arguments_{i} "}}"'
            rules.append(f"function_{i}: {call}")
        rules.append("function: " + " | ".join(f"function_{i}" for i in range(len(tools))))
        if style.calls == "hermes":
            rules.append(f'call: {self._marker(CALL)} "\\n" function "\\n" {self._marker(CALL_END)}')
            rules.append("answer: " + repeated("call", '"\\n"'))
        elif names_calls:
            rules.append(f"call: {self._marker(TOOL_CALLS)} function")
            rules.append("answer: " + repeated("call"))
        elif style.calls == "mistral":
            rules.append(f'answer: {self._marker(TOOL_CALLS)} "[" {repeated("function", _COMMA)} "]"')
        else:
            rules.append("answer: " + repeated("function", '"; "'))
        return self._after_thoughts(rules, prompt)

    def form(self, form: StructuredOutputsParams, prompt: str) -> StructuredOutputsParams:
        """The form, after thoughts where the model thinks. A grammar of the client's own stands as it is."""
        if not self._style.thinks or prompt.rstrip().endswith(THINK_END) or form.grammar is not None:
            return form
        if form.json is not None or form.json_object:
            schema = {"type": "object"} if form.json is None else json.loads(str(form.json))
            answer = f"%json {json_form(schema)}"
        elif form.regex is not None:
            answer = lark_regex(form.regex)
        else:
            answer = " | ".join(map(lark_text, form.choice or ()))
        return self._after_thoughts([f"answer: {answer}"], prompt)

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

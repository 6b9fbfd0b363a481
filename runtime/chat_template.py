"""Chat templates: a conversation to the prompt its model was trained on, rendered as transformers renders it.

Only the model's own templates (or the operator's, given at start) are rendered, never one that a request brings.
"""

from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from jinja2 import Template, TemplateError, TemplateSyntaxError, nodes
from jinja2.exceptions import SecurityError

from pllm.runtime.errors import ArtifactError, RequestError, UserInputError
from pllm.runtime.template_sandbox import BudgetExceededError, TemplateSandbox, TemplateStopError, plain_data

__all__ = ["ChatTemplate"]

_MAX_SECONDS = 2.0
_MAX_CHARACTERS = 1 << 25
_CONTINUE_HERE = "CONTINUE_FINAL_MESSAGE_TAG "
_REASONING = ("reasoning_content", "thinking", "reasoning")


class ChatTemplate:
    """One or several named Jinja templates of a model.

    ``sources`` by name; the plain one is "default", and one named "tool_use" serves conversations with tools.
    A rendering may take ``max_seconds`` of CPU time and make ``max_characters``.
    """

    def __init__(
        self,
        sources: Mapping[str, str],
        special_tokens: Mapping[str, str],
        *,
        max_seconds: float = _MAX_SECONDS,
        max_characters: int = _MAX_CHARACTERS,
    ) -> None:
        self.sources = dict(sources)
        self.special_tokens = dict(special_tokens)
        self._max_seconds, self._max_characters = max_seconds, max_characters
        self._compiled: dict[str, Template] = {}
        self._wants_parts: dict[str, bool] = {}

    @classmethod
    def choose(cls, template: str, special_tokens: Mapping[str, str]) -> "ChatTemplate":
        """The operator's own template: a file's path, or the template itself.

        Raises UserInputError for a file that cannot be read and ArtifactError for a template that is not safe.
        """
        source = template
        if "{" not in template and "\n" not in template:
            try:
                source = Path(template).read_text(encoding="utf-8")
            except (OSError, UnicodeDecodeError) as error:
                raise UserInputError(f"The chat template {template} cannot be read: {error}") from None
        chosen = cls({"default": source}, special_tokens)
        chosen.check()
        return chosen

    def source(self, *, with_tools: bool) -> str:
        """The template that a conversation gets. Raises RequestError when several have names and none is "default"."""
        if with_tools and "tool_use" in self.sources:
            return self.sources["tool_use"]
        if "default" not in self.sources:
            names = ", ".join(sorted(self.sources))
            raise RequestError(f"This model's chat templates are {names}, with no default: name one.")
        return self.sources["default"]

    def check(self) -> None:
        """Compile every template and refuse what reaches for Python's insides; render nothing. Raises ArtifactError."""
        for name, source in self.sources.items():
            self._compile(source)
            for node in self._parse(source).find_all((nodes.Getattr, nodes.Getitem)):
                reached = getattr(node, "attr", None) or getattr(getattr(node, "arg", None), "value", None)
                if isinstance(reached, str) and reached.startswith("__"):
                    raise ArtifactError(
                        f"The chat template {name!r} reaches for {reached!r} (line {node.lineno}), which leads out of "
                        "its sandbox: do not use this model, or give a template of your own with --chat-template."
                    )

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        tools: Sequence[Mapping[str, Any]] | None = None,
        *,
        documents: Sequence[Mapping[str, Any]] | None = None,
        add_generation_prompt: bool = False,
        continue_final_message: bool | str = False,
        **variables: Any,
    ) -> str:
        """The prompt of a conversation. ``variables`` are the template's own, such as ``enable_thinking``.

        ``continue_final_message`` leaves the last message open for the model to go on with (a string names the field).
        Raises RequestError with the template's own words when it refuses the conversation, and when it breaks a limit.
        """
        if not messages:
            raise RequestError("A conversation needs at least one message.", param="messages")
        if continue_final_message and add_generation_prompt:
            raise RequestError(
                "continue_final_message and add_generation_prompt exclude each other: the first continues the last "
                "message, the second begins a new one.",
                param="continue_final_message",
            )
        source = self.source(with_tools=tools is not None)
        conversation = [_message(plain_data(message)) for message in messages]
        opened = _open_final_message(conversation, continue_final_message, source) if continue_final_message else ""
        variables = self.special_tokens | plain_data(variables)
        variables |= {
            "messages": conversation,
            "tools": None if tools is None else plain_data(list(tools)),
            "documents": None if documents is None else plain_data(list(documents)),
            "add_generation_prompt": add_generation_prompt,
        }
        text = self._generate(self._compile(source), variables)
        return _cut_at_mark(text, opened) if continue_final_message else text

    def wants_content_parts(self, *, with_tools: bool) -> bool:
        """True if the template walks over a message's content: it then wants parts, otherwise one string."""
        source = self.source(with_tools=with_tools)
        if source not in self._wants_parts:
            self._wants_parts[source] = _walks_over_content(self._parse(source))
        return self._wants_parts[source]

    @cached_property
    def _sandbox(self) -> TemplateSandbox:
        return TemplateSandbox(max_seconds=self._max_seconds, max_size=self._max_characters)

    def _parse(self, source: str) -> nodes.Template:
        try:
            return self._sandbox.parse(source)
        except TemplateSyntaxError as error:
            raise ArtifactError(f"The chat template is broken at line {error.lineno}: {error.message}") from None
        except RecursionError:
            raise ArtifactError("The chat template is nested too deeply.") from None

    def _compile(self, source: str) -> Template:
        if source not in self._compiled:
            tree = self._parse(source)
            self._sandbox.begin()  # constants are computed while compiling
            try:
                code = self._sandbox.compile(tree)
            except (TemplateError, RecursionError, SyntaxError) as error:
                raise ArtifactError(f"The chat template cannot be compiled: {error}") from None
            self._compiled[source] = Template.from_code(self._sandbox, code, self._sandbox.make_globals(None))
        return self._compiled[source]

    def _generate(self, template: Template, variables: dict[str, Any]) -> str:
        pieces, size = [], 0
        self._sandbox.begin()
        try:
            for piece in template.generate(**variables):
                self._sandbox.tick()
                size += len(piece)
                if size > self._max_characters:
                    raise BudgetExceededError(f"The chat template writes more than {self._max_characters} characters.")
                pieces.append(piece)
        except TemplateStopError as error:
            raise RequestError(
                error.message or "The chat template refuses this conversation.", param="messages"
            ) from None
        except BudgetExceededError as error:
            raise RequestError(str(error), param="messages", code="chat_template_limit") from None
        except SecurityError as error:
            raise RequestError(f"The chat template was stopped: {error}", code="chat_template_refused") from None
        except (RecursionError, MemoryError) as error:
            cause = f"The chat template was stopped: {type(error).__name__}."
            raise RequestError(cause, param="messages", code="chat_template_limit") from None
        except Exception as error:  # a template's arithmetic may fail in any way on a conversation it did not expect
            raise RequestError(f"The chat template fails on this conversation: {error}", param="messages") from None
        return "".join(pieces)


def _message(message: Any) -> dict[str, Any]:
    """One message as templates expect it: no keys without a value, and the reasoning under the names templates read."""
    if not isinstance(message, dict):
        raise RequestError(f"A message must be an object with a role and content, not {message!r}.", param="messages")
    kept = {key: value for key, value in message.items() if value is not None}
    reasoning = next((kept[key] for key in _REASONING if key in kept), None)
    return kept if reasoning is None else {"thinking": reasoning, **kept, "reasoning_content": reasoning}


def _open_final_message(conversation: list[dict[str, Any]], field: bool | str, source: str) -> str:
    """Mark the end of the last message's text in place; that text."""
    name = field if isinstance(field, str) else "content"
    final = conversation[-1]
    text = final.get(name)
    if text is None:
        raise RequestError(f"The last message has no {name!r} to continue.", param="continue_final_message")
    names = [key for key in _REASONING if final.get(key) == text] if name in _REASONING else [name]
    if not any(key in source for key in names):
        raise RequestError(f"The chat template does not use the field {name!r}.", param="continue_final_message")
    if isinstance(text, list | tuple):
        part = next((part for part in reversed(text) if isinstance(part, dict) and "text" in part), None)
        if part is None:
            raise RequestError("The last message has no text to continue.", param="continue_final_message")
        opened = str(part["text"])
        part["text"] = opened + _CONTINUE_HERE
        return opened
    for key in names:
        final[key] = str(final[key]) + _CONTINUE_HERE
    return str(text)


def _cut_at_mark(text: str, opened: str) -> str:
    mark = _CONTINUE_HERE.strip()
    if opened.strip() not in text or mark not in text:
        cause = "The chat template does not write the last message out, so it cannot be continued."
        raise RequestError(cause, param="continue_final_message")
    place = text.rindex(mark)
    if text.startswith(_CONTINUE_HERE, place):
        return text[:place]
    return text[:place].rstrip()  # the template trimmed the message, and so the mark's own space


def _walks_over_content(tree: nodes.Template) -> bool:
    """Does a loop run over some ``x.content`` (or a variable that was set to it)? As vLLM tells the two kinds apart."""
    contents: set[str] = set()

    def is_content(node: nodes.Node) -> bool:
        if isinstance(node, nodes.Name):
            return node.name in contents
        if isinstance(node, nodes.Getattr):
            return node.attr == "content"
        if isinstance(node, nodes.Getitem):
            of_slice = isinstance(node.arg, nodes.Slice) and is_content(node.node)
            return of_slice or getattr(node.arg, "value", None) == "content"
        return isinstance(node, nodes.Filter | nodes.Test) and node.node is not None and is_content(node.node)

    for assignment in tree.find_all(nodes.Assign):
        if isinstance(assignment.target, nodes.Name) and is_content(assignment.node):
            contents.add(assignment.target.name)
    return any(is_content(loop.iter) for loop in tree.find_all(nodes.For))

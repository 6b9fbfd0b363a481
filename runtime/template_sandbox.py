"""The Jinja environment that chat templates run in: transformers' names and filters, and a budget for everything.

A template comes with a model, so it is somebody else's program. Jinja's immutable sandbox keeps it from Python's
insides; it does not keep it from looping for ever or from filling the memory. So every turn of a loop, every call,
every filter and every operator here asks a budget first: for time (the thread's own CPU time, so that a busy machine
refuses nothing) and for the size of what may come out, judged before the work is done. The hooks are compiled into the
template.
"""

import json
import re
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from datetime import datetime
from functools import wraps
from typing import Any

from jinja2 import TemplateError, nodes, pass_context
from jinja2.exceptions import SecurityError
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.runtime import Context, Macro
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace
from jinja2.visitor import NodeTransformer

__all__ = ["BudgetExceededError", "TemplateSandbox", "TemplateStopError", "plain_data"]

_MAX_WORK = (
    1 << 28
)  # characters that one filter or method may have to write at the very most, before its result is judged
_TURN, _CONCAT = "pllm: turn", "pllm: concatenate"  # names that no template can spell
_WRITE, _COUNT = "pllm: write", "pllm: count"
_MAX_MADE = 32  # times the largest value: what one rendering may make in all, kept or thrown away
_LARGE = 1 << 20  # a value of so many characters took long enough to look at the clock
_MAX_INTEGER_BITS = 4096
_MAX_FORMAT_WIDTH_DIGITS = 5
_WIDE_FORMAT = re.compile(rf"\d{{{_MAX_FORMAT_WIDTH_DIGITS + 1},}}|%[-+ #0]*\*|%[-+ #0\d]*\.\*")


class BudgetExceededError(SecurityError):
    """The template took too long, or made too much."""


class TemplateStopError(TemplateError):
    """The template itself said no: ``raise_exception(message)``."""


class _Budget(threading.local):
    """What the rendering on this thread may still use."""

    deadline = 0.0
    ticks = 0
    made = 0


class TemplateSandbox(ImmutableSandboxedEnvironment):
    """Jinja as transformers sets it up for chat templates, with limits. ``max_size`` in characters (or items) of one
    value."""

    intercepted_binops = frozenset({"+", "*", "**", "%"})

    def __init__(self, *, max_seconds: float, max_size: int) -> None:
        super().__init__(trim_blocks=True, lstrip_blocks=True, extensions=[_GenerationBlocks, loopcontrols])
        self.max_seconds, self.max_size = max_seconds, max_size
        self._budget = _Budget()
        del self.globals["lipsum"]  # a generator of filler text
        self.filters = {
            name: self._guarded(function) for name, function in (self.filters | {"tojson": _to_json}).items()
        }
        # A filter that asks for the context is never computed while compiling, as Jinja does with constants.
        self.filters |= {_TURN: _turn, _CONCAT: _concatenate, _WRITE: _write, _COUNT: _count}
        self.globals |= {
            "raise_exception": _raise_exception,
            "strftime_now": lambda format: datetime.now().strftime(format),
            "dict": _TemplateDict(),
            "namespace": _TemplateNamespace,
        }

    def begin(self) -> None:
        """Start the clock for one rendering on this thread."""
        self._budget.deadline = time.thread_time() + self.max_seconds
        self._budget.ticks = self._budget.made = 0

    def tick(self) -> bool:
        """Called on every turn: always true, or the end of the rendering."""
        self._budget.ticks += 1
        if not self._budget.ticks & 63:
            self._check_time()
        return True

    def _check_time(self) -> None:
        if time.thread_time() > self._budget.deadline:
            raise BudgetExceededError(
                f"The chat template ran for more than {self.max_seconds:g} s; it may loop for ever."
            )

    # The names are Jinja's: so a template may call something with an argument of the name self.
    def call(__self, __context: Context, __obj: Any, *args: Any, **kwargs: Any) -> Any:  # noqa: N805
        """Every call in a template comes through here; the sandbox's own check of what may be called follows."""
        self = __self
        self.tick()
        owner = getattr(getattr(__obj, "__wrapped__", __obj), "__self__", None)  # Jinja wraps str.format
        if isinstance(owner, str | list | tuple | dict):
            self._check_work(getattr(__obj, "__name__", ""), (owner, *args, *kwargs.values()))
        return self._checked(super().call(__context, __obj, *args, **kwargs))

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        """``+ * ** %``, the operators whose result can be larger than what they are given."""
        self.tick()
        if operator == "%" and isinstance(left, str):
            self._check_work("format", (left,))
        elif isinstance(left, int) and isinstance(right, int):
            bits = left.bit_length() * (right if operator == "**" else 1) + right.bit_length()
            if operator != "%" and bits > _MAX_INTEGER_BITS:
                raise BudgetExceededError("The chat template computes with a number that is too large.")
        elif operator == "*":
            sizes = [len(value) if hasattr(value, "__len__") else value for value in (left, right)]
            if all(isinstance(size, int) for size in sizes):
                self.check_size(sizes[0] * sizes[1])
        elif operator == "+" and hasattr(left, "__len__") and hasattr(right, "__len__"):
            self.check_size(len(left) + len(right))
        return super().call_binop(context, operator, left, right)

    def _generate(
        self, source: nodes.Template, name: str | None, filename: str | None, defer_init: bool = False
    ) -> str:
        return super()._generate(_Hooks().visit(source), name, filename, defer_init)

    def _guarded(self, function: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(function)  # keeps Jinja's mark for filters that want the context or the environment first
        def guarded(*args: Any, **kwargs: Any) -> Any:
            self.tick()
            self._check_work(getattr(function, "__name__", "").removeprefix("do_"), (*args, *kwargs.values()))
            return self._checked(function(*args, **kwargs))

        return guarded

    def _check_work(self, name: str, values: Iterable[Any]) -> None:
        """Refuse a method or filter whose result could be as large as the product of all sizes it is given."""
        work = 1
        for value in values:
            if isinstance(value, str) and name in {"format", "format_map"} and _WIDE_FORMAT.search(value):
                raise BudgetExceededError("The chat template formats a value into an absurd width.")
            if isinstance(value, str | list | tuple | dict):
                work *= max(len(value), 1)
            elif isinstance(value, int):
                work *= max(abs(value), 1)
        if work > _MAX_WORK:
            raise BudgetExceededError(
                f"The chat template's {name or 'call'} could make more than {_MAX_WORK} characters."
            )

    def _checked(self, value: Any) -> Any:
        if isinstance(value, str | list | tuple | dict):
            self.check_size(len(value))
        return value

    def check_size(self, size: int) -> None:
        """Count a value of so many characters or items, and refuse the one that is too much."""
        if size > self.max_size:
            raise BudgetExceededError(
                f"The chat template makes a value of {size} characters; {self.max_size} is the most."
            )
        self._budget.made += size
        if self._budget.made > _MAX_MADE * self.max_size:
            most = _MAX_MADE * self.max_size
            raise BudgetExceededError(f"The chat template makes more than {most} characters in all.")
        if size > _LARGE:
            self._check_time()


@pass_context
def _turn(context: Context, _value: None) -> bool:
    return _sandbox(context).tick()


@pass_context
def _concatenate(context: Context, parts: list[Any]) -> str:
    """``a ~ b``: every part as text, joined."""
    texts = [str(part) for part in parts]
    _sandbox(context).check_size(sum(map(len, texts)))
    return "".join(texts)


@pass_context
def _write(context: Context, value: Any) -> str:
    """``{{ value }}``: counted here, since a macro or a block that is set collects what it writes unseen."""
    text = value if type(value) is str else str(value)
    _sandbox(context).check_size(len(text))
    return text


@pass_context
def _count(context: Context, size: int) -> None:
    """The template's own text, which every turn of a loop writes again."""
    _sandbox(context).check_size(size)


def _sandbox(context: Context) -> TemplateSandbox:
    sandbox = context.environment
    assert isinstance(sandbox, TemplateSandbox)
    return sandbox


class _Hooks(NodeTransformer):
    """Put the budget's questions into a parsed template."""

    def visit_For(self, node: nodes.For) -> nodes.For:  # noqa: N802  (the visitor's naming)
        self.generic_visit(node)
        node.body.insert(0, nodes.ExprStmt(_ask(_TURN, nodes.Const(None))).set_lineno(node.lineno))
        if node.test is not None:
            node.test = nodes.And(_ask(_TURN, nodes.Const(None)), node.test)
        return node

    def visit_Output(self, node: nodes.Output) -> list[nodes.Node]:  # noqa: N802
        self.generic_visit(node)
        literals = sum(len(part.data) for part in node.nodes if isinstance(part, nodes.TemplateData))
        node.nodes = [part if isinstance(part, nodes.TemplateData) else _ask(_WRITE, part) for part in node.nodes]
        counted = nodes.ExprStmt(_ask(_COUNT, nodes.Const(literals))).set_lineno(node.lineno)
        return [counted, node] if literals else [node]

    def visit_Concat(self, node: nodes.Concat) -> nodes.Node:  # noqa: N802
        self.generic_visit(node)
        return _ask(_CONCAT, nodes.List(node.nodes))


def _ask(hook: str, value: nodes.Expr) -> nodes.Filter:
    """A hook is a filter: it is called directly, where a call would pass the sandbox's own examination every time."""
    return nodes.Filter(value, hook, [], [], None, None)


class _GenerationBlocks(Extension):
    """``{% generation %}...{% endgeneration %}`` marks the assistant's words for training; here its body is written."""

    tags = {"generation"}  # noqa: RUF012  (the type is Jinja's)

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.CallBlock(self.call_method("_body"), [], [], body).set_lineno(line)

    def _body(self, caller: Macro) -> str:
        return caller()


class _TemplateDict:
    """``dict`` in a template: makes one, and has no other attribute of Python's."""

    def __call__(self, *args: Any, **kwargs: Any) -> dict[Any, Any]:
        return dict(*args, **kwargs)

    def fromkeys(self, *args: Any, **kwargs: Any) -> dict[Any, Any]:
        return dict.fromkeys(*args, **kwargs)


class _TemplateNamespace(Namespace):
    """``namespace`` in a template, without underscore names."""

    def __init__(*args: Any, **kwargs: Any) -> None:  # as Jinja's own, so that namespace(self=...) works
        self, rest = args[0], args[1:]
        attributes = dict(*rest, **kwargs)
        for name in attributes:
            _refuse_underscore(name)
        Namespace.__init__(self, attributes)

    def __setitem__(self, name: str, value: Any) -> None:
        _refuse_underscore(name)
        super().__setitem__(name, value)


def _refuse_underscore(name: Any) -> None:
    if isinstance(name, str) and name.startswith("_"):
        raise SecurityError(f"A chat template may not keep the underscore name {name!r} in a namespace.")


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | str | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """JSON as ``json.dumps`` writes it; Jinja's own filter escapes for HTML."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _raise_exception(message: str) -> None:
    raise TemplateStopError(message)


def plain_data(value: Any) -> Any:
    """``value`` rebuilt of plain JSON types, so that a template meets no object with methods of its own.

    Anything else becomes its type's name in angle brackets, as transformers does it.
    """
    if value is None or type(value) in (str, int, float, bool):
        return value
    for kind in (str, int, float):
        if isinstance(value, kind):
            return kind.__str__(value) if kind is str else kind(value)
    if isinstance(value, Mapping):
        return {plain_data(key): plain_data(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return (
            type(value)(plain_data(item) for item in value)
            if type(value) in (list, tuple)
            else [plain_data(item) for item in value]
        )
    dump = getattr(value, "model_dump", None)
    return plain_data(dump()) if callable(dump) else f"<{type(value).__name__}>"

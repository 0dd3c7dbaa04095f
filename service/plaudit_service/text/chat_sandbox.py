"""The Jinja environment of chat templates: no Python attributes, no clock, no chance, and bounded work.

A template comes with its bundle, so it is a program from outside. Jinja's sandbox keeps it from reaching Python; the
budget here keeps it from filling the memory or never ending: what a render writes, joins, repeats, calls or loops over
is charged before it is made, as far as that is known. Knows nothing of messages.
"""

import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextvars import ContextVar
from functools import wraps
from typing import Any

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension
from jinja2.parser import Parser
from jinja2.runtime import Context, LoopContext
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.visitor import NodeTransformer

# Characters that one render may make, and what each step costs besides: together less than a second of work.
_BUDGET_CHARS = 50_000_000
_STEP_CHARS = 256
# No template has a use for a larger number as a width, count or position, or for a longer integer.
_MAX_NUMBER = 100_000
_MAX_INTEGER_BITS = 4096
_LARGE_WIDTH = re.compile(r"\d{6}|%[^a-z%]*\*")
# Methods of strings that make little of much, or are bounded below. The others pad, translate or encode.
# fmt: off
_STRING_METHODS = frozenset({
    "capitalize", "count", "endswith", "find", "format", "format_map", "index", "isalnum", "isalpha", "isdigit",
    "islower", "isnumeric", "isspace", "isupper", "join", "lower", "lstrip", "partition", "removeprefix",
    "removesuffix", "replace", "rfind", "rindex", "rpartition", "rsplit", "rstrip", "split", "splitlines",
    "startswith", "strip", "title", "upper",
})
# fmt: on
_REMOVED_FILTERS = ("center", "filesizeformat", "pprint", "random", "urlize", "wordwrap", "xmlattr")
_REMOVED_GLOBALS = ("lipsum",)
# Filters that write their whole argument; the others look at it or take it apart.
_WRITING_FILTERS = frozenset({"e", "escape", "forceescape", "format", "join", "safe", "string", "tojson"})

_left: ContextVar[int] = ContextVar("what a render may still make, in characters")


def render(template: jinja2.Template, **variables: Any) -> str:
    """Render a template of a `Sandbox` within a budget of its own.

    Raises:
        jinja2.TemplateError: the budget was used up; or what else the template raises.
    """
    token = _left.set(_BUDGET_CHARS)
    try:
        return template.render(**variables)
    finally:
        _left.reset(token)


class Sandbox(ImmutableSandboxedEnvironment):
    """Set up as transformers does for `apply_chat_template`."""

    intercepted_binops = frozenset({"+", "*", "**", "%"})

    def __init__(self) -> None:
        super().__init__(
            trim_blocks=True,
            lstrip_blocks=True,
            extensions=[_GenerationBlock, "jinja2.ext.loopcontrols"],
            finalize=_charge_output,
        )
        self.filters["tojson"] = _tojson
        for name in _REMOVED_FILTERS:
            del self.filters[name]
        for name in _REMOVED_GLOBALS:
            del self.globals[name]
        self.globals["raise_exception"] = _raise_exception
        self.filters = {name: _charged_filter(name, function) for name, function in self.filters.items()}
        self.filters |= {_ITEMS: _charge_items, _CONCAT: _concat}

    def _parse(self, source: str, name: str | None, filename: str | None) -> nodes.Template:
        tree = super()._parse(source, name, filename)
        return _ChargeLoops().visit(tree)  # type: ignore[no-any-return]

    def is_safe_attribute(self, obj: Any, attr: str, value: Any) -> bool:
        """No attribute of Python's own, and of strings only what cannot blow up."""
        if isinstance(obj, str) and attr not in _STRING_METHODS:
            return False
        return super().is_safe_attribute(obj, attr, value)

    def call(__self, __context: Context, __obj: Any, *args: Any, **kwargs: Any) -> Any:  # noqa: N805  as in jinja2
        """Call what a template calls."""
        _charge(_STEP_CHARS)
        _check_numbers(*args, *kwargs.values())
        if isinstance(__obj, LoopContext):  # a recursive loop goes deeper
            args = (_charge_items(args[0], 0), *args[1:])
        method = getattr(__obj, "__wrapped__", __obj)  # the sandbox wraps `format`
        if isinstance(subject := getattr(method, "__self__", None), str):
            args = _charge_string_method(subject, method.__name__, args)
        result = super().call(__context, __obj, *args, **kwargs)
        _charge_made(result)
        return result

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        """Compute what could grow."""
        if operator == "%" and isinstance(left, str):
            _check_format(left, right)
        elif operator in {"*", "**"} and isinstance(left, int) and isinstance(right, int):
            bits = left.bit_length() * right if operator == "**" else left.bit_length() + right.bit_length()
            if bits > _MAX_INTEGER_BITS:
                raise jinja2.TemplateError("an integer grows too long")
        elif operator == "*":
            for many, times in ((left, right), (right, left)):
                if isinstance(many, str | list | tuple) and isinstance(times, int):
                    _charge(len(many) * max(times, 0))
        result = super().call_binop(context, operator, left, right)
        _charge_made(result)
        return result


class _GenerationBlock(Extension):
    """`{% generation %}...{% endgeneration %}` renders its body; transformers marks the assistant's tokens with it."""

    tags = {"generation"}  # noqa: RUF012  jinja2 declares it as an instance attribute

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.Scope(body, lineno=line)


_ITEMS = " items of a loop"  # no template can spell these names
_CONCAT = " concatenation"


class _ChargeLoops(NodeTransformer):
    """Lets loops and `~`, for which Jinja has no hook, go through filters of ours."""

    def visit_For(self, node: nodes.For) -> nodes.Node:  # noqa: N802  jinja2's way to name visitors
        text = sum(len(data.data) for data in node.find_all(nodes.TemplateData))
        self.generic_visit(node)
        node.iter = nodes.Filter(node.iter, _ITEMS, [nodes.Const(text)], [], None, None, lineno=node.lineno)
        return node

    def visit_Concat(self, node: nodes.Concat) -> nodes.Node:  # noqa: N802
        self.generic_visit(node)
        parts = nodes.List(node.nodes, lineno=node.lineno)
        return nodes.Filter(parts, _CONCAT, [], [], None, None, lineno=node.lineno)


def _charge(chars: int) -> None:
    left = _left.get() - chars
    if left < 0:
        raise jinja2.TemplateError("the chat template does too much work")
    _left.set(left)


def _charge_made(value: Any) -> None:
    if isinstance(value, str | list | tuple):
        _charge(len(value))


def _charge_written(value: Any) -> None:
    """What a value takes when it is written out; containers may hold one another many times over."""
    if isinstance(value, str):
        _charge(len(value))
        return
    _charge(_STEP_CHARS)
    if isinstance(value, Mapping):
        for key, inner in value.items():
            _charge_written(key)
            _charge_written(inner)
    elif isinstance(value, list | tuple | set | frozenset):
        for inner in value:
            _charge_written(inner)


def _charge_items(items: Iterable[Any], text: int) -> Iterator[Any]:
    for item in items:
        _charge(_STEP_CHARS + text)
        yield item


def _charge_string_method(subject: str, name: str, args: tuple[Any, ...]) -> tuple[Any, ...]:
    """The arguments to call it with."""
    if name in {"format", "format_map"}:
        _check_format(subject, args)
    elif name == "replace" and len(args) >= 2:
        _charge_replace(subject, *args[:2])
    elif name == "join" and args:
        return (_charge_join(args[0], subject), *args[1:])
    return args


def _charge_replace(subject: str, old: Any, new: Any) -> None:
    if isinstance(old, str) and isinstance(new, str):
        _charge(len(subject) + subject.count(old) * len(new))


def _charge_join(parts: Any, separator: Any) -> Any:
    """The parts to join. Of a range or a generator a list, because it does not tell what it comes to."""
    if not isinstance(parts, str | list | tuple):
        parts = list(_charge_items(parts, 0))
    if isinstance(separator, str):
        _charge(len(parts) * len(separator))
    _charge_written(parts)
    return parts


def _check_format(text: str, args: Any) -> None:
    if _LARGE_WIDTH.search(text):
        raise jinja2.TemplateError("a format has too large a width")
    _charge_written(args)


def _check_numbers(*values: Any) -> None:
    for value in values:
        if isinstance(value, int) and abs(value) > _MAX_NUMBER:
            raise jinja2.TemplateError(f"a call has a number above {_MAX_NUMBER}")


def _charged_filter(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(function)  # takes over which of Jinja's contexts it wants as first argument
    def charged(*args: Any, **kwargs: Any) -> Any:
        given = args[1:] if hasattr(function, "jinja_pass_arg") else args
        _charge(_STEP_CHARS)
        _check_numbers(*given[1:], *kwargs.values())
        if name == "replace" and len(given) >= 3:
            _charge_replace(str(given[0]), *given[1:3])
        elif name == "indent" and given:
            width = given[1] if len(given) > 1 else kwargs.get("width", 4)
            _charge(str(given[0]).count("\n") * (len(width) if isinstance(width, str) else int(width)))
        elif name == "join" and given:
            parts = _charge_join(given[0], given[1] if len(given) > 1 else kwargs.get("d", ""))
            args = (*args[: -len(given)], parts, *given[1:])
        elif name == "format":
            _check_format(str(given[0]), given[1:])
        elif name in _WRITING_FILTERS:
            _charge_written(given[0])
        result = function(*args, **kwargs)
        _charge_made(result)
        return result

    return charged


@jinja2.pass_context
def _charge_output(_: Context, value: Any) -> Any:
    _charge_written(value)
    return value


def _concat(parts: list[Any]) -> str:
    _charge_written(parts)
    return "".join(map(str, parts))


def _raise_exception(message: str) -> None:
    raise jinja2.TemplateError(message)


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    if indent is not None and indent > 64:
        raise jinja2.TemplateError("tojson: an indent above 64")
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)

"""Rendering of chat templates in the child process of a `ChildService`.

Templates are programs of strangers. They run in jinja2's sandbox with the extensions, filters and functions of
transformers (`utils/chat_template_utils.py`, `_compile_jinja_template`), which decides what a template means.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime
from functools import lru_cache
from typing import Any

import jinja2
from jinja2 import meta, nodes
from jinja2.exceptions import SecurityError, TemplateError
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace

_REASONING = ("reasoning_content", "thinking", "reasoning")
"""Names of a message's reasoning. Templates read the first; those of gpt-oss read the second."""

_clock: list[datetime] = []
"""The time of the call that runs; empty for the current time."""


class _Generation(Extension):
    """The tag `generation`, which marks what the assistant writes."""

    tags = {"generation"}  # noqa: RUF012 - as jinja2 declares it
    spans: list[tuple[int, int]] | None = None
    written: list[str]

    def parse(self, parser: Parser) -> nodes.Node:
        """Parse the block up to `endgeneration`."""
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.CallBlock(self.call_method("_mark"), [], [], body).set_lineno(line)

    def _mark(self, caller: Callable[[], str]) -> str:
        text = caller()
        if self.spans is not None:
            start = sum(map(len, self.written))
            self.spans.append((start, start + len(text)))
        return text

    @contextmanager
    def tracking(self, written: list[str]) -> Iterator[list[tuple[int, int]]]:
        """Record the places of marked text, after the parts that were written before it."""
        self.written, self.spans = written, []
        try:
            yield self.spans
        finally:
            self.spans = None


class _Dict:
    """The type `dict`, without its attributes."""

    def __call__(self, *arguments: Any, **named: Any) -> dict[Any, Any]:
        return dict(*arguments, **named)

    def fromkeys(self, *arguments: Any) -> dict[Any, Any]:
        """Return `dict.fromkeys` of the arguments."""
        return dict.fromkeys(*arguments)


class _Namespace(Namespace):
    """A namespace without attributes of Python's objects."""

    def __init__(*arguments: Any, **named: Any) -> None:
        self, *others = arguments
        attributes = dict(*others, **named)
        for name in attributes:
            _check_attribute(name)
        Namespace.__init__(self, attributes)

    def __setitem__(self, name: str, value: Any) -> None:
        _check_attribute(name)
        Namespace.__setitem__(self, name, value)


def _check_attribute(name: object) -> None:
    if isinstance(name, str) and name.startswith("_"):
        raise SecurityError(f"Chat templates cannot store underscore-prefixed attributes on a namespace: {name!r}")


def _raise(message: str) -> None:
    raise TemplateError(message)


# the filter of jinja2 escapes characters of HTML, which prompts contain as they are
def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _now(form: str) -> str:
    return (_clock[0] if _clock else datetime.now()).strftime(form)


@lru_cache(maxsize=1)
def _environment() -> ImmutableSandboxedEnvironment:
    environment = ImmutableSandboxedEnvironment(
        # as in transformers: other settings write other line breaks
        trim_blocks=True,
        lstrip_blocks=True,
        extensions=[_Generation, loopcontrols],
    )
    environment.filters["tojson"] = _to_json
    functions: dict[str, Any] = {"raise_exception": _raise, "strftime_now": _now}
    environment.globals.update(functions, dict=_Dict(), namespace=_Namespace)
    return environment


@lru_cache(maxsize=16)
def _compiled(text: str) -> jinja2.Template:
    return _environment().from_string(text)


@lru_cache(maxsize=16)
def _variables(text: str) -> frozenset[str]:
    return frozenset(meta.find_undeclared_variables(_environment().parse(text)))


def respond(call: Mapping[str, Any] | Sequence[Mapping[str, Any]]) -> Any:
    """Render a conversation, or each of several.

    Args:
        call: `template`, its text; `messages`; `tools`, or null; `prompted`; `now`, a local time or null; `tokens`, the
            special tokens; `variables` of the caller; `most`, the maximum characters of the prompt. Or a list of calls.

    Returns:
        `text` and `spans` of what the assistant wrote, or `refusal`: the reason why the template refuses the
        conversation; or `unread`: names of variables that the template does not read; or `long`: true.
    """
    return _answer(call) if isinstance(call, Mapping) else list(map(_answer, call))


def _answer(call: Mapping[str, Any]) -> dict[str, Any]:
    _clock[:] = [] if call["now"] is None else [datetime.fromisoformat(call["now"])]
    try:
        unread = sorted(set(call["variables"]) - _variables(call["template"]))
        return {"unread": unread} if unread else _rendered(call)
    except MemoryError:
        raise
    except Exception as error:  # noqa: BLE001 - any error of a template is its refusal
        lines = str(error).strip().splitlines()
        return {"refusal": lines[0] if lines else type(error).__name__}


def _rendered(call: Mapping[str, Any]) -> dict[str, Any]:
    template, written, size = _compiled(call["template"]), list[str](), 0
    extension = _environment().extensions[_Generation.identifier]
    assert isinstance(extension, _Generation)
    with extension.tracking(written) as spans:
        # in parts, so that a template which writes for ever is stopped
        for part in template.generate(
            messages=_normalized(call["messages"]),
            tools=call["tools"],
            documents=None,
            add_generation_prompt=call["prompted"],
            **{**call["tokens"], **call["variables"]},
        ):
            written.append(part)
            size += len(part)
            if size > call["most"]:
                return {"long": True}
    return {"text": "".join(written), "spans": spans}


def _normalized(messages: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Drop keys whose value is null, and repeat the reasoning under the names that templates read."""
    normalized = []
    for message in messages:
        known = {key: value for key, value in message.items() if value is not None}
        reasoning = next((known[key] for key in _REASONING if key in known), None)
        if reasoning is not None:
            known = {"thinking": reasoning, **known, "reasoning_content": reasoning}
        normalized.append(known)
    return normalized

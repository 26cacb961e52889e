"""The commands, found by scanning `adapter_export.commands`, and each made into a command of click."""

from __future__ import annotations

import importlib
import inspect
import os
import pkgutil
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from itertools import chain
from types import ModuleType
from typing import Annotated, Any

import click

from adapter_export import commands
from adapter_export.cli.config import config_option
from adapter_export.cli.group import Entry, LazyGroup
from adapter_export.cli.help_page import HelpPage, examples, flag_of
from adapter_export.cli.options import from_environment, is_given, option, parameters
from adapter_export.cli.output import TerminalScreen, emit_json
from adapter_export.cli.reporter import TerminalReporter
from adapter_export.commands.command import Command, Found, Instead
from adapter_export.errors import UsageError
from adapter_export.option import OptionsOf

_SECTIONS = ("models", "training", "adapters", "bundles", "serving")
"""The order of the sections; others come behind."""

_FAILED = 1


def found_commands() -> Mapping[str, Entry]:
    """Return all commands by name, in the order of the help page."""
    found = dict[str, Entry]()
    for section in _in_order(_modules(commands), _SECTIONS):
        if hasattr(section, "__path__"):
            for name, entry in _entries(section).items():
                found[name] = replace(entry, section=_name(section).capitalize())
    return found


def _entries(package: ModuleType) -> Mapping[str, Entry]:
    """Return the commands in a package; a package inside it is a group of commands."""
    entries = dict[str, Entry]()
    for module in _in_order(_modules(package), getattr(package, "ORDER", ())):
        name = _name(module)
        summary = str(module.__doc__).partition("\n")[0]
        make = partial(_group, module) if hasattr(module, "__path__") else partial(made, module.COMMAND, name)
        entries[name] = Entry(summary, make)
    return entries


def _modules(package: ModuleType) -> Iterator[ModuleType]:
    """Import the modules of a package, but those whose names begin with an underscore."""
    for found in pkgutil.iter_modules(package.__path__):
        if not found.name.startswith("_"):
            yield importlib.import_module(f"{package.__name__}.{found.name}")


def _name(module: ModuleType) -> str:
    """Return the name of a command: that of its module, `import` of `import_`."""
    return module.__name__.rpartition(".")[2].rstrip("_")


def _in_order(modules: Iterator[ModuleType], order: Sequence[str]) -> list[ModuleType]:
    names = {_name(module): module for module in modules}
    return sorted(names.values(), key=lambda one: order.index(_name(one)) if _name(one) in order else len(order))


def _group(package: ModuleType) -> click.Command:
    text = inspect.cleandoc(str(package.__doc__))
    return LazyGroup(_name(package), table=_entries(package), help=text, epilog=examples(*package.EXAMPLES))


def made(command: Command[Found], name: str) -> click.Command:
    """Make a command of click: its page from the docstring of the call, its parameters from the signature."""
    params = list(parameters(command.call))
    options = [param for param in params if isinstance(param, click.Option)]
    own = [
        *(option(flag, Annotated[bool, other.option], False) for flag, other in command.instead.items()),
        click.Option(["as_json", "--json"], is_flag=True, help="Write one JSON document to stdout."),
        config_option(),
    ]
    return HelpPage(
        name,
        params=[
            *(param for param in params if isinstance(param, click.Argument)),
            *sorted(options, key=lambda option: not option.required),
            *own,
        ],
        callback=partial(_run, command, name),
        help=_page(command),
        epilog=examples(*command.examples),
        sections={title: list(_names(parts)) for title, parts in command.sections.items()},
        common=command.common,
    )


def _names(parts: Sequence[str | OptionsOf]) -> Iterator[str]:
    for part in parts:
        yield from (part,) if isinstance(part, str) else part.defaults()


def _page(command: Command[Any]) -> str:
    """Return the docstring of the call without its examples in Python and its sections, such as `Args:`."""
    text = re.split(r"^(?:Args|Returns|Raises|Yields):$", inspect.getdoc(command.call) or "", flags=re.MULTILINE)[0]
    text = re.sub(r"^::\n\n(?:    .*\n|\n)+", "", text, flags=re.MULTILINE)
    return f"{text.rstrip()}\n\nExit codes: {command.exit_codes}." if command.exit_codes else text.rstrip()


def _run(command: Command[Found], title: str, /, *, as_json: bool, **given: Any) -> None:
    """Call, and render what the call returns."""
    for flag, other in command.instead.items():
        if given.pop(flag):
            _run(other.command, title, as_json=as_json, **_taken(other, flag, given))
            return
    chosen = {name: value for name, value in given.items() if value is not None}
    known = inspect.signature(command.call).parameters
    with TerminalReporter(title) as reporter:
        screen = TerminalScreen(chosen, reporter.notes)
        keywords = dict(chosen)
        repeated = [keywords.pop(one.name) for one in known.values() if one.kind is one.VAR_POSITIONAL]
        keywords |= from_environment(command.call)
        keywords |= {"reporter": reporter} if "reporter" in known else {}
        if command.live is not None:
            keywords[command.live] = lambda *event: _present(command, event, screen, as_json)
        found = command.call(*chain(*repeated), **keywords)
        reporter.end()
        if found is not None and os.environ.get("RANK", "0") == "0":  # of processes that train together the first one
            _present(command, found, screen, as_json)
    if found is not None and not command.passed(found):
        raise click.exceptions.Exit(_FAILED)


def _taken(other: Instead, flag: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments that another call takes; UsageError if others are given."""
    context = click.get_current_context()
    known = inspect.signature(other.command.call).parameters
    typed = {str(one.name): flag_of(one) for one in context.command.params if isinstance(one, click.Option)}
    extra = [typed[name] for name in given if name not in known and is_given(context, name)]
    if extra:
        raise UsageError(other.refusal, found=", ".join(extra), fix=f"leave them out, or leave {typed[flag]} out")
    return {name: value for name, value in given.items() if name in known}


def _present(command: Command[Any], found: Any, screen: TerminalScreen, as_json: bool) -> None:
    if as_json:
        emit_json(command.document(found, screen))
    else:
        command.show(found, screen)

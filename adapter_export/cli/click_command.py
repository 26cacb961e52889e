"""Click commands, made from a command's description and its call's signature."""

from __future__ import annotations

import inspect
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from itertools import chain
from typing import Annotated, Any

import click

from adapter_export.cli.config import config_option
from adapter_export.cli.help_page import HelpPage, examples, flag_of
from adapter_export.cli.options import from_environment, is_given, option, parameters
from adapter_export.cli.reporter import TerminalReporter
from adapter_export.cli.terminal import TerminalScreen, emit_json
from adapter_export.commands.command import Command, Instead, Outcome
from adapter_export.errors import UsageError
from adapter_export.option import OptionsOf
from adapter_export.plugin import first_of_each, part_modules


def make_command(command: Command[Outcome], name: str) -> click.Command:
    """Make a click command, with help from the call's docstring and parameters from its signature."""
    command = replace(command, instead={**_flags_of_plugins(name), **command.instead})
    params = list(parameters(command.call))
    options = [param for param in params if isinstance(param, click.Option)]
    extra_options = [
        *(option(flag, Annotated[bool, other.option], False) for flag, other in command.instead.items()),
        *([click.Option(["--verbose"], is_flag=True, help=command.verbose)] if command.verbose else []),
        click.Option(["as_json", "--json"], is_flag=True, help="Write one JSON document to stdout."),
        config_option(),
    ]
    ordered = sorted(options, key=lambda option: not option.required)
    required = [option for option in options if option.required and command.instead]
    for each in required:  # not with a flag that runs another call; `_run` looks for it
        each.required = False
    return HelpPage(
        name,
        params=[*(param for param in params if isinstance(param, click.Argument)), *ordered, *extra_options],
        callback=partial(_run, command, name, required),
        help=_page(command),
        epilog=examples(*command.examples),
        sections={title: list(_names(parts)) for title, parts in command.sections.items()},
        common=command.common,
        moved={"--" + name.replace("_", "-"): call.sentence("shell") for name, call in command.moved.items()},
    )


def _flags_of_plugins(name: str) -> Mapping[str, Instead]:
    """Return the flags that plug-ins add to a command, by parameter name."""
    return first_of_each(
        "flag", chain.from_iterable(module.FLAGS.get(name, {}).items() for module in part_modules("flags"))
    )


def _names(parts: Sequence[str | OptionsOf]) -> Iterator[str]:
    for part in parts:
        yield from (part,) if isinstance(part, str) else part.defaults()


def _page(command: Command[Any]) -> str:
    """Return the call's docstring without Python examples and sections such as `Args:`."""
    text = re.split(r"^(?:Args|Returns|Raises|Yields):$", inspect.getdoc(command.call) or "", flags=re.MULTILINE)[0]
    text = re.sub(r"^::\n\n(?:    .*\n|\n)+", "", text, flags=re.MULTILINE)
    return f"{text.rstrip()}\n\nExit codes: {command.exit_codes}." if command.exit_codes else text.rstrip()


def _run(
    command: Command[Outcome],
    title: str,
    required: Sequence[click.Option],
    /,
    *,
    as_json: bool,
    verbose: bool = False,
    **arguments: Any,
) -> None:
    """Run the call and render its result."""
    for flag, other in command.instead.items():
        if arguments.pop(flag):
            _run(other.command, title, (), as_json=as_json, verbose=verbose, **_accepted(other, flag, arguments))
            return
    for each in required:
        if not arguments[str(each.name)]:
            raise click.MissingParameter(ctx=click.get_current_context(), param=each)
    chosen = {name: value for name, value in arguments.items() if value is not None}
    known = inspect.signature(command.call).parameters
    with TerminalReporter(title) as reporter:
        screen = TerminalScreen(chosen, reporter.notes, verbose)
        keywords = dict(chosen)
        repeated = [
            keywords.pop(parameter.name) for parameter in known.values() if parameter.kind is parameter.VAR_POSITIONAL
        ]
        keywords |= from_environment(command.call)
        keywords |= {"reporter": reporter} if "reporter" in known else {}
        if command.live is not None:
            keywords[command.live] = lambda *event: _present(command, event, screen, as_json)
        outcome = command.call(*chain(*repeated), **keywords)
        reporter.end()
        if outcome is not None and os.environ.get("RANK", "0") == "0":  # one of several training processes
            _present(command, outcome, screen, as_json)
    if outcome is not None and not command.passed(outcome):
        raise click.exceptions.Exit(command.exit_code(outcome))


def _accepted(other: Instead, flag: str, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments that another call accepts; raise `UsageError` for others."""
    context = click.get_current_context()
    call = other.command.call
    known = {*inspect.signature(call).parameters, *(parameter.name for parameter in parameters(call))}
    typed = {
        str(parameter.name): flag_of(parameter)
        for parameter in context.command.params
        if isinstance(parameter, click.Option)
    }
    extra = [typed[name] for name in arguments if name not in known and is_given(context, name)]
    if extra:
        raise UsageError(other.refusal, found=", ".join(extra), fix=f"remove them, or remove {typed[flag]}")
    return {name: value for name, value in arguments.items() if name in known}


def _present(command: Command[Any], outcome: Any, screen: TerminalScreen, as_json: bool) -> None:
    if as_json:
        emit_json(command.document(outcome, screen))
    else:
        command.show(outcome, screen)

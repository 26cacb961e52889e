"""`--config FILE`: command options from a TOML file, with a table per command."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from adapter_export.cli.group import LazyGroup
from adapter_export.errors import FormatError, UsageError
from adapter_export.safe_io.regular_files import read_text
from adapter_export.words import nearest

_HELP = "Read options from `[COMMAND]` in a TOML file."


def config_option() -> click.Option:
    """Return the option `--config`."""
    return click.Option(
        ["--config"],
        type=click.Path(path_type=Path),
        metavar="FILE",
        help=_HELP,
        is_eager=True,  # eager, because it sets the defaults of other options
        expose_value=False,
        callback=_use,
    )


def _use(context: click.Context, _: click.Parameter, path: Path | None) -> None:
    if path is None or context.resilient_parsing:
        return
    names = context.command_path.split()[1:]
    options = {
        _word(param): param
        for param in context.command.params
        if isinstance(param, click.Option) and param.expose_value
    }
    context.default_map = {
        str(options[key].name): _checked(context, options[key], value, f"{path}, `{'.'.join([*names, key])}`")
        for key, value in _table(path, names, context.find_root().command, options).items()
    }


def _word(option: click.Option) -> str:
    """Return an option's key in a file: its longest flag without dashes."""
    return max(option.opts, key=len).removeprefix("--")


def _table(path: Path, names: list[str], group: click.Command, options: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return a command's table; a command in a group has a nested table, `[import.peft]`.

    Raises:
        FileError, FormatError: the file cannot be read or is not TOML.
        UsageError: a table names no command, or a key names no option.
    """
    try:
        keys: Any = tomllib.loads(read_text(path))
    except tomllib.TOMLDecodeError as error:
        raise FormatError("is not TOML", where=path, found=error) from error
    except RecursionError as error:
        raise FormatError(
            "is too deeply nested", where=path, found="brackets in brackets", expected="tables"
        ) from error
    at = list[str]()
    for name in names:
        assert isinstance(group, LazyGroup)
        _check_keys(keys, group.table, f"{path}, `[{'.'.join(at)}]`" if at else str(path), "command")
        at.append(name)
        group, keys = group.table[name].make(), keys.get(name, {})
        if not isinstance(keys, dict):
            raise UsageError("must be a table", where=f"{path}, `{'.'.join(at)}`", found=f"`{keys}`")
    _check_keys(keys, options, f"{path}, `[{'.'.join(at)}]`", "option")
    table: Mapping[str, Any] = keys
    return table


def _check_keys(keys: Mapping[str, Any], known: Mapping[str, Any], where: str, what: str) -> None:
    for key in keys:
        if key not in known:
            near = nearest(key, known)
            fix = None if near is None else f"did you mean `{near}`?"
            raise UsageError(f"has no {what} of this name", where=where, found=f"`{key}`", fix=fix)


def _checked(context: click.Context, option: click.Option, value: object, where: str) -> object:
    """Return a value as written on the command line, after the option has validated it."""
    try:
        text = _text(option, value)
        option.type_cast_value(context, text)
    except (click.BadParameter, ValueError) as error:
        reason = error.format_message() if isinstance(error, click.BadParameter) else str(error)
        raise UsageError("is not a value of this option", where=where, found=f"`{value}`", expected=reason) from None
    return text


def _text(option: click.Option, value: object) -> object:
    if option.is_flag or isinstance(value, bool):
        if not (option.is_flag and isinstance(value, bool)):
            raise ValueError("`true` or `false`" if option.is_flag else "a number or a text")
        return value
    match value:
        case list():
            items = [str(entry) for entry in value]
            return items if option.multiple else ",".join(items)
        case dict():
            return ",".join(f"{name}={entry}" for name, entry in value.items())
        case int() | float() | str():
            return [str(value)] if option.multiple else str(value)
        case _:
            raise ValueError("a number, a string, a list or a table")

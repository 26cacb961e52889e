"""Arguments and options of a command, made from its call's signature.

::

    def pack(weights: PathLike, *, base: Annotated[PathLike, Option("The model.", "MODEL")]) -> Adapter:

A positional parameter is an argument of the command. An annotated keyword parameter is an option, as is a positional
one whose `Option` has flags; it is required if it has no default. `**options: Annotated[Any, OptionsOf(…)]` adds an
option for each annotated field of the given classes.

A `bool` is a flag, a `Sequence` is repeatable or comma-separated, a `Literal` is a choice; `values.py` parses types
with their own syntax.
"""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable, Iterator, Sequence
from types import SimpleNamespace
from typing import Annotated, Any, get_args, get_origin, get_type_hints

import click
from click.core import ParameterSource

from adapter_export.cli.completion import WORDS, completed
from adapter_export.cli.values import converter, types_of
from adapter_export.option import Option


def parameters(call: Callable[..., object]) -> Iterator[click.Parameter]:
    """Yield the arguments and options of a call's command."""
    packed: Iterator[tuple[str, object, object]] = iter(())
    for parameter, hint in _hinted(call):
        if parameter.kind is parameter.VAR_KEYWORD:
            packed = get_args(hint)[1].declared()
            continue
        kind, settings = types_of(hint)
        if settings.variable:
            continue
        if parameter.kind is parameter.KEYWORD_ONLY or settings.flags:
            if get_origin(hint) is Annotated:  # other parameters, such as callbacks, exist in Python only
                yield option(parameter.name, hint, parameter.default)
        else:
            many = parameter.kind is parameter.VAR_POSITIONAL or (_is_list(kind) and not settings.commas)
            words: dict[str, Any] = {"type": converter(kind, settings), "metavar": _metavar(settings)}
            words |= {"shell_complete": completed} if parameter.name == "adapters" else {}
            yield click.Argument([parameter.name], nargs=-1 if many else 1, required=True, **words)
    yield from (option(*declaration) for declaration in packed)


def from_environment(call: Callable[..., object]) -> dict[str, str]:
    """Return the parameters that environment variables set, such as passwords."""
    variables = {parameter.name: types_of(hint)[1].variable for parameter, hint in _hinted(call)}
    return {name: os.environ[variable] for name, variable in variables.items() if variable in os.environ}


def is_given(context: click.Context, name: str) -> bool:
    """Return True if the user set a parameter, on the command line or in a file."""
    return context.get_parameter_source(name) is not ParameterSource.DEFAULT


def _hinted(call: Callable[..., object]) -> Iterator[tuple[inspect.Parameter, object]]:
    return ((parameter, hint_of(call, parameter.name)) for parameter in inspect.signature(call).parameters.values())


def _is_list(kind: frozenset[Any]) -> bool:
    """Return True if a value may be a list, given by repeating the option."""
    return any(get_origin(member) is Sequence for member in kind)


def hint_of(call: Callable[..., object], name: str) -> object:
    """Return a parameter's type; names imported only for type checking make no option."""
    alone = SimpleNamespace(__annotations__={name: call.__annotations__[name]})
    unknown: dict[str, object] = {}
    while True:
        try:
            return get_type_hints(alone, vars(inspect.getmodule(call)), unknown, include_extras=True)[name]
        except NameError as error:
            unknown[str(error.name)] = object
        except AttributeError:  # a module name that is unknown at run time, such as `np.ndarray`
            return None


def option(name: str, hint: object, default: object) -> click.Option:
    """Return an annotated parameter's option."""
    kind, described = types_of(hint)
    flags = described.flags.split()
    if not any(flag.startswith("--") for flag in flags):
        flags.append(f"--{name.replace('_', '-')}")
    required = default is inspect.Parameter.empty if described.required is None else described.required
    if default is inspect.Parameter.empty and not required:
        default = ()  # a list that may be omitted on the command line
    settings: dict[str, Any] = {"help": described.help, "required": required}
    if name in WORDS:
        settings["shell_complete"] = completed
    if kind == {bool}:
        settings |= {"is_flag": True, "default": None if default is None else False}
    else:
        settings |= {"type": converter(kind, described), "metavar": _metavar(described)}
        settings["multiple"] = _is_list(kind) and not described.commas
        if not required and default is not None:
            settings |= {"default": default, "show_default": default != ()}
    return click.Option([name, *flags], **settings)


def _metavar(described: Option) -> str | None:
    return described.metavar() if callable(described.metavar) else described.metavar

"""Commands made from signatures: a parameter is an option, its type a converter, its annotation the help.

::

    @command("adapter-export pack w.safetensors --kind lora --base model.pt -o a")
    def pack(weights: Path, *, base: Annotated[Path, Option("The model.", "MODEL")], as_json: Json = False) -> None:

A parameter that can be given by position is an argument of the command, one by keyword alone is an option. It is
required if it has no default. `**options: Unpack[PackOptions]`, a `TypedDict`, brings an option for each key, and the
function gets those that were given; `like=call` brings the keyword parameters of a call that the function does not
have itself. So an option is declared once, in the API.

Types: `bool` is a flag, `Sequence[str]` an option that may be repeated, a `Literal` a choice, and `_CONVERTERS` has
what is written with commas.
"""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Annotated, Any, get_args, get_origin, get_type_hints

import click
from click.core import ParameterSource

from adapter_export.cli.completion import WORDS, completed
from adapter_export.cli.config import config_option
from adapter_export.cli.help_page import HelpPage, examples, flag_of
from adapter_export.cli.values import converter, types_of
from adapter_export.errors import UsageError
from adapter_export.option import SITE_MAP, TRUST_PICKLE, Option, OptionsOf

Json = Annotated[bool, Option("Write one JSON document to stdout.", flags="--json")]
Force = Annotated[bool, Option("Replace what is at the output's place.")]
TrustPickle = Annotated[bool, TRUST_PICKLE]
SiteMapFile = Annotated[Path | None, SITE_MAP]
AdapterFolder = Annotated[Path, Option("The adapter folder to write.", "PATH", "-o")]
LabelledData = Annotated[
    Path, Option("Labelled texts: csv, tsv or jsonl in UTF-8; or a folder of images or audio for each label.", "PATH")
]


def command(
    *lines: str,
    like: Callable[..., object] | Sequence[Callable[..., object]] = (),
    without: Collection[str] = (),
    sections: Mapping[str, Sequence[str]] | None = None,
    common: Collection[str] = (),
) -> Callable[[Callable[..., None]], click.Command]:
    """Make a command of a function; its docstring is the help, `lines` are the examples at its end.

    The annotated keyword parameters of `like` are options, too; the function takes them as `**options: Any`. Of several
    calls the first one gives all of its own, the others all that are not `without`. Required options come first, then
    those of `like`, then the function's own, in the order of the signatures, in `sections` as `Command` has them.
    """

    def make(function: Callable[..., None]) -> click.Command:
        own = inspect.signature(function).parameters
        params = list(parameters(function))
        arguments = [param for param in params if isinstance(param, click.Argument)]
        options = [param for param in params if not isinstance(param, click.Argument)]
        borrowed: dict[str, click.Parameter] = {}
        for place, one in enumerate(like if isinstance(like, Sequence) else (like,)):
            for param in parameters(one):
                if isinstance(param, click.Option) and param.name not in {*own, *(without if place else ())}:
                    borrowed.setdefault(str(param.name), param)
        options = [*borrowed.values(), *options]

        def call(**given: Any) -> None:
            function(**{name: value for name, value in given.items() if value is not None})

        return HelpPage(
            function.__name__.rstrip("_"),
            params=[*arguments, *sorted(options, key=lambda option: not option.required), config_option()],
            callback=call,
            help=inspect.getdoc(function),
            epilog=examples(*lines),
            sections=sections or {},
            common=common,
        )

    return make


def check_together(*, apart: Sequence[Sequence[str]] = (), needs: Mapping[str, tuple[str, str]] | None = None) -> None:
    """Refuse options of the running command that exclude each other, or that are given without another.

    Of each group in `apart` one may be given; `needs` has for an option the one that it needs, and how it belongs to
    that, such as `("data", "is one of")`.
    """
    context = click.get_current_context()
    flags = {str(param.name): f"`{flag_of(param)}`" for param in context.command.params}
    given = [name for name in flags if context.get_parameter_source(name) is not ParameterSource.DEFAULT]
    for names in apart:
        both = [flags[name] for name in names if name in given]
        if len(both) > 1:
            raise UsageError(f"{' and '.join(both)} do not go together", fix="give one of them")
    for name, (other, belongs) in (needs or {}).items():
        if name in given and other not in given:
            raise UsageError(f"{flags[name]} {belongs} {flags[other]}, which is not given")


def parameters(call: Callable[..., object]) -> Iterator[click.Parameter]:
    """Yield the arguments and options of a command that is made of a call."""
    packed: Iterator[tuple[str, object, object]] = iter(())
    for one, hint in _hinted(call):
        if one.kind is one.VAR_KEYWORD:
            declared = get_args(hint)[1] if get_origin(hint) is Annotated else OptionsOf(*get_args(hint))  # of `Unpack`
            packed = declared.declared()
            continue
        kind, said = types_of(hint)
        if said.variable:
            continue
        if one.kind is one.KEYWORD_ONLY or said.flags:
            if get_origin(hint) is Annotated:  # else it is for Python callers alone, such as a callback
                yield option(one.name, hint, one.default)
        else:
            many = one.kind is one.VAR_POSITIONAL or (_is_list(kind) and not said.commas)
            words: dict[str, Any] = {"type": converter(kind, said), "metavar": _metavar(said)}
            words |= {"shell_complete": completed} if one.name == "adapters" else {}
            yield click.Argument([one.name], nargs=-1 if many else 1, required=True, **words)
    yield from (option(*one) for one in packed)


def from_environment(call: Callable[..., object]) -> dict[str, str]:
    """Return the parameters of a call that environment variables set, such as passwords."""
    variables = {one.name: types_of(hint)[1].variable for one, hint in _hinted(call)}
    return {name: os.environ[variable] for name, variable in variables.items() if variable in os.environ}


def is_given(context: click.Context, name: str) -> bool:
    """Return whether a user has set a parameter, on the command line or in a file."""
    return context.get_parameter_source(name) is not ParameterSource.DEFAULT


def _hinted(call: Callable[..., object]) -> Iterator[tuple[inspect.Parameter, object]]:
    return ((one, _hint(call, one.name)) for one in inspect.signature(call).parameters.values())


def _is_list(kind: frozenset[Any]) -> bool:
    """Return whether a value may be a list, which an option gives by being repeated."""
    return any(get_origin(one) is Sequence for one in kind)


def _hint(call: Callable[..., object], name: str) -> object:
    """Return the type of a parameter; of names that are imported for type checking alone, no option is made."""
    alone = SimpleNamespace(__annotations__={name: call.__annotations__[name]})
    unknown: dict[str, object] = {}
    while True:
        try:
            return get_type_hints(alone, vars(inspect.getmodule(call)), unknown, include_extras=True)[name]
        except NameError as error:
            unknown[str(error.name)] = object
        except AttributeError:  # a name of a module that is unknown, such as `np.ndarray`
            return None


def option(name: str, hint: object, default: object) -> click.Option:
    """Return the option of an annotated parameter."""
    kind, said = types_of(hint)
    flags = said.flags.split()
    if not any(flag.startswith("--") for flag in flags):
        flags.append(f"--{name.replace('_', '-')}")
    required = default is inspect.Parameter.empty if said.required is None else said.required
    if default is inspect.Parameter.empty and not required:
        default = ()  # of a list that the command line may leave out
    settings: dict[str, Any] = {"help": said.help, "required": required}
    if name in WORDS:
        settings["shell_complete"] = completed
    if kind == {bool}:
        settings |= {"is_flag": True, "default": None if default is None else False}
    else:
        settings |= {"type": converter(kind, said), "metavar": _metavar(said)}
        settings["multiple"] = _is_list(kind) and not said.commas
        if not required and default is not None:
            settings |= {"default": default, "show_default": default != ()}
    return click.Option([name, *flags], **settings)


def _metavar(said: Option) -> str | None:
    return said.metavar() if callable(said.metavar) else said.metavar

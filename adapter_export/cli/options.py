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
import textwrap
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import NoneType, SimpleNamespace, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

import click
from click.core import ParameterSource

from adapter_export.errors import AdapterExportError, UsageError
from adapter_export.option import SITE_MAP, TRUST_PICKLE, Option, OptionsOf

LONGEST_PAGE = 60
"""The most lines of a help page, on a terminal of 80 columns or more."""

Json = Annotated[bool, Option("Write one JSON document to stdout.", flags="--json")]
Force = Annotated[bool, Option("Replace what is at the output's place.")]
TrustPickle = Annotated[bool, TRUST_PICKLE]
SiteMapFile = Annotated[Path | None, SITE_MAP]
AdapterFolder = Annotated[Path, Option("The adapter folder to write.", "PATH", "-o")]
LabelledData = Annotated[
    Path, Option("Labelled texts: csv, tsv or jsonl in UTF-8; or a folder of images or audio for each label.", "PATH")
]


def examples(*lines: str) -> str:
    """Return the end of a help page: examples, kept line by line."""
    return "\b\nExamples:\n" + "\n".join(f"  {line}" for line in lines)


class Command(click.Command):
    """A command whose help page has its options in sections, and never more than `LONGEST_PAGE` lines.

    Where they do not fit, the page has the most used ones and the names of the others, and `--help SECTION` explains
    those of a section, as curl does it.

    Args:
        sections: names of parameters, by the name of their section; what is in none is on the page in any case.
        common: those in sections that are.
    """

    def __init__(
        self, *args: Any, sections: Mapping[str, Sequence[str]], common: Collection[str] = (), **rest: Any
    ) -> None:
        super().__init__(*args, **rest)
        own = {str(param.name): param for param in self.params}
        named = {title: [own[name] for name in names if name in own] for title, names in sections.items()}
        self.sections = {title: params for title, params in named.items() if params}
        self._sectioned = {param.name for params in self.sections.values() for param in params}
        self._common = common
        self._help: click.Option | None = None

    def get_help_option(self, ctx: click.Context) -> click.Option | None:
        """Return `--help`, which may name a section."""
        if not self.sections:
            return super().get_help_option(ctx)
        if self._help is None:
            self._help = click.Option(
                ["help_section", *self.get_help_option_names(ctx)],
                is_flag=False,
                flag_value="",
                metavar="[SECTION]",
                expose_value=False,
                is_eager=True,
                help="Show this page, or explain the options of a section.",
                callback=self._show_help,
                shell_complete=lambda *given: [title for title in self.sections if title.startswith(given[2])],
            )
        return self._help

    def _show_help(self, ctx: click.Context, _: click.Parameter, section: str | None) -> None:
        if section is None or ctx.resilient_parsing:
            return
        formatter = ctx.make_formatter()
        if section in self.sections:
            self.format_usage(ctx, formatter)
            _write_options(ctx, formatter, section, self.sections[section])
        else:
            self.format_help(ctx, formatter)
        click.echo(formatter.getvalue().rstrip("\n"), color=ctx.color)
        ctx.exit()

    def format_help(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the page with all options explained, or where that is too long, with the most used ones, or fewer."""
        whole, rare = self._sectioned, self._sectioned.difference(self._common)
        brief = [(True, rare, None), (True, rare, 1), (True, whole, 1)] if self.sections else []
        for named, hidden, most in [(False, whole, None), *brief]:
            page = ctx.make_formatter()
            self.format_usage(ctx, page)
            self.format_help_text(ctx, page)
            _write_options(ctx, page, "options", [one for one in self.get_params(ctx) if one.name not in hidden])
            if named:
                indent, names = max(map(len, self.sections)) + 2, dict[str, str]()
                for title, own in self.sections.items():
                    flags = " ".join(_flag(one) for one in own if one.name in hidden)
                    room = page.width - indent - 4
                    lines = textwrap.wrap(flags, room, break_on_hyphens=False, max_lines=most, placeholder=" …")
                    names[title] = "\n".join(["\b", *lines])
                with page.section(f"More, explained by `{ctx.command_path} --help SECTION`"):
                    page.write_dl([*names.items()])
            else:
                for title, own in self.sections.items():
                    _write_options(ctx, page, title, own)
            self.format_epilog(ctx, page)
            if page.getvalue().count("\n") <= LONGEST_PAGE:
                break
        formatter.write(page.getvalue())


def _write_options(
    ctx: click.Context, formatter: click.HelpFormatter, title: str, params: Sequence[click.Parameter]
) -> None:
    records = [param.get_help_record(ctx) for param in params if isinstance(param, click.Option)]
    with formatter.section(title.capitalize()):
        formatter.write_dl([record for record in records if record is not None])


def _flag(param: click.Parameter) -> str:
    return max(param.opts, key=len)


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
        params = list(_params(function))
        arguments = [param for param in params if isinstance(param, click.Argument)]
        options = [param for param in params if not isinstance(param, click.Argument)]
        borrowed: dict[str, click.Parameter] = {}
        for place, one in enumerate(like if isinstance(like, Sequence) else (like,)):
            for param in _params(one):
                if isinstance(param, click.Option) and param.name not in {*own, *(without if place else ())}:
                    borrowed.setdefault(str(param.name), param)
        options = [*borrowed.values(), *options]

        def call(**given: Any) -> None:
            function(**{name: value for name, value in given.items() if value is not None})

        return Command(
            function.__name__.rstrip("_"),
            params=[*arguments, *sorted(options, key=lambda option: not option.required)],
            callback=call,
            help=inspect.getdoc(function),
            epilog=examples(*lines),
            sections=sections or {},
            common=common,
        )

    return make


def _kinds(_: click.Context) -> Iterable[str]:
    from adapter_export.graph.kinds import KINDS

    return KINDS


def _variants(_: click.Context) -> Iterable[str]:
    from adapter_export.format.manifest import VARIANT_NAMES

    return VARIANT_NAMES


def _adapters(context: click.Context) -> Iterable[str]:
    """Return the adapters of the bundle that is named before, or for a command that takes new ones, those in reach."""
    from adapter_export.safe_io.documents import read_json

    if context.command.name in ("run", "evaluate", "remove"):
        # an option that still lacks its value leaves arguments where they stand
        bundle = context.params.get("bundle") or next(iter(context.args), "")
        try:
            manifest: Any = read_json(Path(bundle) / "manifest.json")
            return [record["name"] for record in manifest["adapters"]]
        except (AdapterExportError, KeyError, TypeError):
            return []
    return [path.parent.name for folder in (Path(), Path("adapters")) for path in folder.glob("*/adapter_graph.json")]


_WORDS: Mapping[str, Callable[[click.Context], Iterable[str]]] = {
    **dict.fromkeys(("kind", "kinds"), _kinds),
    "variants": _variants,
    **dict.fromkeys(("adapter", "adapters", "fuse", "bake"), _adapters),
}
"""What a shell completes, by the name of the parameter."""


def _completed(context: click.Context, param: click.Parameter, incomplete: str) -> list[str]:
    """Return what a value can go on with, or the last item of one with commas."""
    before, comma, last = incomplete.rpartition(",")
    words = _WORDS[str(param.name)](context)
    return [f"{before}{comma}{word}" for word in words if word.startswith(last)]


def check_together(*, apart: Sequence[Sequence[str]] = (), needs: Mapping[str, tuple[str, str]] | None = None) -> None:
    """Refuse options of the running command that exclude each other, or that are given without another.

    Of each group in `apart` one may be given; `needs` has for an option the one that it needs, and how it belongs to
    that, such as `("data", "is one of")`.
    """
    context = click.get_current_context()
    flags = {str(param.name): f"`{_flag(param)}`" for param in context.command.params}
    given = [name for name in flags if context.get_parameter_source(name) is not ParameterSource.DEFAULT]
    for names in apart:
        both = [flags[name] for name in names if name in given]
        if len(both) > 1:
            raise UsageError(f"{' and '.join(both)} do not go together", fix="give one of them")
    for name, (other, belongs) in (needs or {}).items():
        if name in given and other not in given:
            raise UsageError(f"{flags[name]} {belongs} {flags[other]}, which is not given")


def _params(call: Callable[..., object]) -> Iterator[click.Parameter]:
    packed: Iterator[tuple[str, object, object]] = iter(())
    for one in inspect.signature(call).parameters.values():
        hint = _hint(call, one.name)
        if one.kind is one.VAR_KEYWORD:
            declared = get_args(hint)[1] if get_origin(hint) is Annotated else OptionsOf(*get_args(hint))  # of `Unpack`
            packed = declared.declared()
        elif one.kind is one.KEYWORD_ONLY:
            if get_origin(hint) is Annotated:  # else it is for Python callers alone, such as a callback
                yield _option(one.name, hint, one.default)
        else:
            kind, said = _read(hint)
            words: dict[str, Any] = {"type": _converter(kind, said), "metavar": _metavar(said)}
            words |= {"shell_complete": _completed} if one.name == "adapters" else {}
            yield click.Argument([one.name], nargs=-1 if kind == {Sequence[str]} else 1, required=True, **words)
    yield from (_option(*one) for one in packed)


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


def _option(name: str, hint: object, default: object) -> click.Option:
    kind, said = _read(hint)
    flags = said.flags.split()
    if not any(flag.startswith("--") for flag in flags):
        flags.append(f"--{name.replace('_', '-')}")
    required = default is inspect.Parameter.empty
    settings: dict[str, Any] = {"help": said.help, "required": required}
    if name in _WORDS:
        settings["shell_complete"] = _completed
    if kind == {bool}:
        settings |= {"is_flag": True, "default": None if default is None else False}
    else:
        settings |= {"type": _converter(kind, said), "metavar": _metavar(said), "multiple": kind == {Sequence[str]}}
        if not required and default not in (None, ()):
            settings |= {"default": default, "show_default": True}
    return click.Option([name, *flags], **settings)


def _read(hint: object) -> tuple[frozenset[Any], Option]:
    """Return the types that a value can have, without `None`, and what is said of it."""
    said: object = Option()
    if get_origin(hint) is Annotated:
        hint, said = get_args(hint)[:2]
    kinds = get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)
    return frozenset(kinds) - {NoneType}, said if isinstance(said, Option) else Option(str(said))


def _metavar(said: Option) -> str | None:
    return said.metavar() if callable(said.metavar) else said.metavar


def _converter(kind: frozenset[Any], said: Option) -> Any:
    if said.choices:
        return click.Choice(said.choices() if callable(said.choices) else said.choices)
    if kind == {int} and said.least is not None:
        return click.IntRange(min=said.least)
    if kind in _CONVERTERS:
        return _CONVERTERS[kind]
    literals = [word for one in kind if get_origin(one) is Literal for word in get_args(one)]
    if literals:
        return click.Choice(literals)
    return next((found for one, found in _PLAIN.items() if one in kind), click.STRING)


class _Text(click.ParamType):  # type: ignore[type-arg] # generic since click 8.4
    """A value that is written as text in a way of its own."""

    def __init__(self, metavar: str, parse: Callable[[str], object], otherwise: str) -> None:
        self.name = self._metavar = metavar
        self._parse = parse
        self._otherwise = otherwise

    def get_metavar(self, param: click.Parameter, ctx: click.Context) -> str:  # noqa: ARG002
        return self._metavar

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Return what the text means, or refuse it."""
        try:
            return self._parse(value) if isinstance(value, str) else value
        except ValueError:
            self.fail(f"`{value}` {self._otherwise}", param, ctx)


def _names(text: str) -> tuple[str, ...]:
    words = tuple(word.strip() for word in text.split(","))
    if not all(words):
        raise ValueError(text)
    return words


def _number(text: str) -> float:
    number = float(text)
    return int(number) if number.is_integer() else number


def _by_name(text: str, twice: str) -> dict[str, float]:
    pairs = [item.rsplit("=", 1) for item in text.split(",")]
    found = {name.strip(): _number(number) for name, number in pairs}
    if len(found) < len(pairs):
        raise click.BadParameter(f"`{text}` gives {twice}")
    return found


def _numbers(text: str) -> float | dict[str, float]:
    return _by_name(text, "one name two numbers") if "=" in text else _number(text)


def _weights_by_name(text: str) -> dict[str, float]:
    return _by_name(text, "one adapter two weights")


def _weights(text: str) -> tuple[float, ...] | dict[str, float]:
    return _weights_by_name(text) if "=" in text else tuple(map(float, text.split(",")))


def _class_weights(text: str) -> str | dict[str, float]:
    return text if text == "balanced" else _by_name(text, "one label two weights")


def _scaling(text: str) -> float | str:
    return text if text in ("learned", "channel") else float(text)


def _list_or_range(text: str, number: type[float]) -> tuple[float, ...] | str:
    return text if ".." in text else tuple(map(number, text.split(",")))


_NAMES = _Text("A,B,…", _names, "has an empty item")
_CONVERTERS: Mapping[frozenset[Any], click.ParamType[Any]] = {
    frozenset({tuple[str, ...]}): _NAMES,
    frozenset({tuple[str | int, ...]}): _NAMES,
    frozenset({float, Mapping[str, float]}): _Text(
        "N|NAME=N,…", _numbers, "is neither a number nor a list such as `query=8,value=4`"
    ),
    frozenset({float, Literal["learned", "channel"]}): _Text(
        "N|learned|channel", _scaling, "is neither a number nor `learned` or `channel`"
    ),
    frozenset({Mapping[str, float], Literal["balanced"]}): _Text(
        "balanced|LABEL=N,…", _class_weights, "is neither `balanced` nor a list such as `good=1,bad=3`"
    ),
    frozenset({tuple[int, ...]}): _Text(
        "N,…", lambda text: tuple(map(int, text.split(","))), "is no list of whole numbers such as `16,64`"
    ),
    frozenset({tuple[int, ...], str}): _Text(
        "N,…|LOW..HIGH",
        lambda text: _list_or_range(text, int),
        "is neither a list such as `16,64` nor a range `4..256`",
    ),
    frozenset({tuple[float, ...], str}): _Text(
        "N,…|LOW..HIGH", lambda text: _list_or_range(text, float), "is neither a list such as `0.001,0.01` nor a range"
    ),
    frozenset({tuple[float, ...]}): _Text(
        "N,…", lambda text: tuple(map(float, text.split(","))), "is no list of numbers such as `0.3,0.7`"
    ),
    frozenset({tuple[float, ...], Mapping[str, float]}): _Text(
        "N,…|NAME=N,…", _weights, "is no list of numbers such as `0.3,0.7` or `a=0.3,b=0.7`"
    ),
    frozenset({Mapping[str, float]}): _Text(
        "A=0.3,B=0.7", _weights_by_name, "is no list such as `a=0.3,b=0.7`; `--weights` names the members"
    ),
}
_PATH = click.Path(path_type=Path)  # its reader says whether it is there, in the words of `errors.py`
_PLAIN: Mapping[type, click.ParamType[Any]] = {Path: _PATH, int: click.INT, float: click.FLOAT, str: click.STRING}

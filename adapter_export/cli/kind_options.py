"""The options that choose a kind of adapter and what is free in it, for `train` and `pack`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import fields, replace
from typing import Any, TypeVar

import click

from adapter_export.errors import UsageError
from adapter_export.graph.kinds import KINDS, BottleneckOptions, Kind, Maker, PhmOptions, kind_named, per_layer
from adapter_export.graph.ops import ACTIVATIONS

Command = TypeVar("Command", bound=Callable[..., Any])

_LEARNED = ("learned", "channel")
_SUBLAYERS = ("attention", "cross_attention", "ffn")


def _numbers(_: click.Context, __: click.Parameter, text: str | None) -> Any:
    """`8` as a number, `query=8,value=4` as numbers by name."""
    if text is None:
        return None
    try:
        if "=" not in text:
            return _number(text)
        pairs = [item.split("=", 1) for item in text.split(",")]
        return {name.strip(): _number(number) for name, number in pairs}
    except ValueError as error:
        raise click.BadParameter(f"`{text}` is neither a number nor a list such as `query=8,value=4`") from error


def _names(_: click.Context, __: click.Parameter, text: str | None) -> tuple[str, ...] | None:
    """`a,b` as words."""
    if text is None:
        return None
    words = tuple(word.strip() for word in text.split(","))
    if not all(words):
        raise click.BadParameter(f"`{text}` has an empty item")
    return words


def _scaling(_: click.Context, __: click.Parameter, text: str | None) -> float | str | None:
    """A number, or one of the words."""
    if text is None or text in _LEARNED:
        return text
    try:
        return float(text)
    except ValueError as error:
        raise click.BadParameter(f"`{text}` is neither a number nor `learned` or `channel`") from error


def _kind(_: click.Context, __: click.Parameter, name: str) -> str:
    kind_named(name)
    return name


def _number(text: str) -> float:
    number = float(text)
    return int(number) if number.is_integer() else number


_PLACES = (
    click.option(
        "--at",
        metavar="A,B,…",
        callback=_names,
        help="Sublayers of a bottleneck: `attention`, `cross_attention`, `ffn`, `decoder.ffn` …; by kind.",
    ),
    click.option("--leave-out", metavar="A,B,…", callback=_names, help="Layers without the adapter, counted from 0."),
    click.option(
        "--on",
        metavar="A,B,…",
        callback=_names,
        help="Linear layers of LoRA and IA3: `query`, `attention.output`; by kind.",
    ),
    click.option(
        "--inputs",
        metavar="A,B,…",
        callback=_names,
        help="Linear layers whose inputs IA3 multiplies.  [default: ffn.down]",
    ),
)
_GRAPH = (
    click.option("--activation", type=click.Choice(ACTIVATIONS), help="The function between the projections; by kind."),
    click.option(
        "--scaling",
        metavar="N|learned|channel",
        callback=_scaling,
        help="The factor on the up-projection's output; by kind.",
    ),
)
_ALPHA = click.option(
    "--alpha", metavar="N|NAME=N,…", callback=_numbers, help="LoRA's factor is alpha/rank.  [default: the rank]"
)
_RS_LORA = click.option("--rs-lora", is_flag=True, default=None, help="LoRA's factor is alpha/√rank.")
_SHAPE = (
    click.option("--bottleneck", type=int, help="The width between the projections; by kind, 64 or a part of `d`."),
    click.option(
        "--reduction-factor",
        metavar="N|NAME=N,…",
        callback=_numbers,
        help="`d` over that width: `16`, `0=8,default=16` by layer.",
    ),
    click.option(
        "--rank", metavar="N|NAME=N,…", callback=_numbers, help="LoRA's width: `8`, `query=8,value=4`.  [default: 8]"
    ),
    click.option("--dropout", type=float, help="The rate in training, on the up-projection's output; on LoRA's input."),
    click.option("--drop-path", type=float, help="The rate at which a row goes without the bottleneck in training."),
    click.option("--norm-before", is_flag=True, default=None, help="A layer norm before the down-projection."),
    click.option("--norm-after", is_flag=True, default=None, help="A layer norm after the up-projection."),
    click.option("--gate", is_flag=True, default=None, help="A learned gate, one number per text."),
    click.option("--no-bias", is_flag=True, default=None, help="Bottlenecks whose projections have no biases."),
    click.option("--lora-bias", is_flag=True, default=None, help="LoRA whose second matrix has a bias."),
    click.option("--phm-dim", type=int, help="Projections as sums of so many Kronecker products; 4 in Compacter."),
    click.option("--phm-rank", type=int, help="The rank of their factors.  [default: 1]"),
)
TRAINED = (*_PLACES, *_GRAPH, _ALPHA, _RS_LORA, *_SHAPE)
"""What training chooses."""

PACKED = (*_PLACES, *_GRAPH, _ALPHA, _RS_LORA)
"""What plain tensors do not show."""


def kind_option(**settings: Any) -> Callable[[Command], Command]:
    """`--kind`; a kind that is refused is refused with the reason."""
    names = f"[{'|'.join(KINDS)}]"
    return click.option("--kind", metavar=names, callback=_kind, help="What is computed, and where.", **settings)


_WIDTHS = ("bottleneck", "reduction_factor")


def with_options(options: tuple[Callable[[Any], Any], ...]) -> Callable[[Command], Command]:
    """Add options to a command, in their order."""

    def add(command: Command) -> Command:
        for option in reversed(options):
            command = option(command)
        return command

    return add


def names_of(options: tuple[Callable[[Any], Any], ...]) -> list[str]:
    """The names under which a command gets the options."""

    @with_options(options)
    def bare() -> None:
        pass

    return [str(param.name) for param in click.command(bare).params]


def make_kind(name: str, given: Mapping[str, Any]) -> Kind:
    """The kind with the options that were given on the command line, those that are not None.

    Raises:
        UsageError: the kind does not have one of them, or it cannot have this value.
    """
    maker = kind_named(name)
    chosen = {key: value for key, value in given.items() if value is not None}
    kind = maker.changed(**kind_options(maker, chosen))
    return placed(_widened(kind, chosen), chosen)


def kind_options(maker: Maker[Any], chosen: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of the kind's options that the options of the command line mean.

    Raises:
        UsageError: the kind does not have one of them.
    """
    kind = maker.make(maker.defaults)
    known = _known(maker, kind)
    strangers = [key for key in chosen if key not in known]
    if strangers:
        raise UsageError(
            f"kind `{kind.name}` has no such option",
            found=", ".join(_flag(key) for key in strangers),
            expected=", ".join(_flag(key) for key in known),
        )
    meant: dict[str, Any] = {}
    for key, value in chosen.items():
        meant |= _meaning(maker, key, value, meant)
    return meant


def _known(maker: Maker[Any], kind: Kind) -> list[str]:
    own = {field.name for field in fields(maker.defaults)}
    bottlenecks = isinstance(maker.defaults, BottleneckOptions)
    by_name = ["activation", "scaling", "dropout", "drop_path", "norm_before", "norm_after", "gate"]
    by_name += ["on", "inputs", "rank", "alpha", "rs_lora"]
    known = [name for name in by_name if name in own]
    known += ["no_bias", "phm_dim", "phm_rank", "at", *_WIDTHS] if bottlenecks else []
    known += ["lora_bias"] if "rank" in own else []
    known += ["reduction_factor"] if kind.name == "nice" else ["leave_out"]
    return known


def _meaning(maker: Maker[Any], key: str, value: Any, before: Mapping[str, Any]) -> dict[str, Any]:
    if key in ("at", "leave_out", *_WIDTHS):
        return {}
    if key == "no_bias":
        return {"bias": False}
    if key == "lora_bias":
        return {"bias": True}
    if key in ("phm_dim", "phm_rank"):
        if value < 1:
            raise UsageError(f"{_flag(key)} is too small", found=value, expected="at least 1")
        phm = before.get("phm") or getattr(maker.defaults, "phm", None) or PhmOptions()
        return {"phm": replace(phm, **{{"phm_dim": "n", "phm_rank": "rank"}[key]: value})}
    if isinstance(value, Mapping):
        return {f"{key}s": value}
    if key == "rank" and not isinstance(value, int):
        raise UsageError("`--rank` is a whole number", found=value)
    return {key: value}


def _widened(kind: Kind, chosen: Mapping[str, Any]) -> Kind:
    bottleneck, factor = (chosen.get(key) for key in _WIDTHS)
    if bottleneck is not None and factor is not None:
        raise UsageError("`--bottleneck` and `--reduction-factor` exclude each other", fix="give one of them")
    if bottleneck is not None:
        if bottleneck < 1:
            raise UsageError("`--bottleneck` is too small", found=bottleneck, expected="at least 1")
        return kind.with_widths(b=bottleneck)
    if factor is None:
        return kind
    if kind.name == "nice":
        if isinstance(factor, Mapping):
            raise UsageError("`nice` acts at one place and has one reduction factor", found=dict(factor))
        half = per_layer(2 * factor)
        return kind.with_widths(f=half, g=half)
    return kind.with_widths(b=per_layer(factor))


def placed(kind: Kind, chosen: Mapping[str, Any]) -> Kind:
    """The kind at other sublayers, and without some layers, as `--at` and `--leave-out` say.

    Raises:
        UsageError: there is no such sublayer, or a layer is not a number.
    """
    roles = chosen.get("at")
    if roles is not None:
        wrong = [role for role in roles if role.removeprefix("encoder.").removeprefix("decoder.") not in _SUBLAYERS]
        if wrong:
            raise UsageError(
                "`--at` names no sublayer",
                found=f"`{wrong[0]}`",
                expected="`attention`, `cross_attention` and `ffn`; of one part of a base as `decoder.ffn`",
            )
        kind = kind.at_roles(*roles)
    layers = chosen.get("leave_out", ())
    wrong = [layer for layer in layers if not layer.isdecimal()]
    if wrong:
        raise UsageError("`--leave-out` names no layer", found=f"`{wrong[0]}`", expected="numbers from 0")
    return kind.leaving_out(*map(int, layers)) if layers else kind


def _flag(name: str) -> str:
    return f"`--{name.replace('_', '-')}`"

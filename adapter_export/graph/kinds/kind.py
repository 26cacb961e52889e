"""Kinds of adapter: graphs with their places and widths, and the maker with its options.

The options of a kind are one frozen dataclass. Each field with a `KindOption` in its annotation is an argument of
`train` and `attach` in Python and an option of `train` on the command line; `pack` takes those that tensors do not
show, and `sweep` varies those that say so. Fields without one have no option.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Annotated, Any, Generic, Literal, TypeVar, get_args, get_origin, get_type_hints

import numpy as np

from adapter_export.errors import AdapterError, UsageError
from adapter_export.graph.adapter import SHARED, Placement
from adapter_export.graph.graph import AdapterGraph
from adapter_export.option import Option
from adapter_export.sites.site import LAYERS, SUBLAYERS, Site
from adapter_export.words import argument, command, joined, quoted

DEFAULT_BOTTLENECK = 64
"""The default bottleneck width (Houlsby et al. 2019, §3.3: sizes from 8 to 64 on GLUE)."""

_LEAST = 1e-6
"""The smallest reduction factor; a width over a smaller one is none that fits into memory, or infinite."""


@dataclass(frozen=True)
class RelativeWidth:
    """A width that follows from the width `of`: `⌊of / factor⌋`, at least 1.

    The factor is a number or another symbol, `None` if `by_layer` has one for every layer; below 1 it widens. An
    `exact` share must divide without rest.
    """

    of: str
    factor: float | str | None
    by_layer: Mapping[int, float] = field(default_factory=dict)
    exact: bool = False

    def __post_init__(self) -> None:
        factors = [factor for factor in (self.factor, *self.by_layer.values()) if factor is not None]
        wrong = [factor for factor in factors if not isinstance(factor, str) and not _LEAST <= factor < math.inf]
        if wrong:
            expected = f"a number from {_LEAST:g} on"
            raise UsageError("a reduction factor is not a positive number", found=wrong[0], expected=expected)

    def at(self, layer: int | None, widths: Mapping[str, int]) -> int:
        """Return the width in one layer; raises `UsageError` if it has no factor, or an exact share does not divide."""
        whole = widths[self.of]
        chosen = self.factor if layer is None else self.by_layer.get(layer, self.factor)
        factor = widths[chosen] if isinstance(chosen, str) else chosen
        if factor is None:
            raise UsageError(f"layer {layer} has no reduction factor", fix="name it, or give one for `default`")
        if self.exact and whole % factor:
            raise UsageError(
                f"the width `{self.of}` cannot be cut into equal blocks",
                found=whole,
                expected=f"a multiple of {factor:g}",
                fix="choose another bottleneck or reduction factor",
            )
        return max(1, int(whole // factor))


Width = int | RelativeWidth


def per_layer(factors: float | Mapping[str, float], of: str = "d") -> RelativeWidth:
    """Return a reduction factor, or a factor by layer number with `default` for the others, as AdapterHub writes them.

    Raises `UsageError` for a key that is neither a number nor `default`, or a factor that is not positive.
    """
    if not isinstance(factors, Mapping):
        return RelativeWidth(of, factors)
    layers = {key: factor for key, factor in factors.items() if key != "default"}
    wrong = [key for key in layers if not key.isdecimal()]
    if wrong:
        raise UsageError(
            "a reduction factor is given for something that is not a layer",
            found=quoted(wrong),
            expected="layer numbers, or `default`",
        )
    return RelativeWidth(of, factors.get("default"), {int(key): factor for key, factor in layers.items()})


_FUSED = {"qkv": ("query", "key", "value"), "qk": ("query", "key"), "kv": ("key", "value"), "gate_up": ("gate", "up")}
"""The layers that fused layers compute, by their names."""


@dataclass(frozen=True)
class Places:
    """A choice of sites: by roles (`ffn`, or `decoder.ffn` in one of several streams), and linear layers by names.

    `linears` are names, or ends of names, of linear layers or splits of fused ones; layers outside of all sublayers are
    named in full. The layers in `leave_out` have no adapter (AdapterDrop, Rücklé et al. 2021, §3).
    """

    roles: tuple[str, ...] = ()
    linears: tuple[str, ...] = ()
    leave_out: tuple[int, ...] = ()

    def hold(self, site: Site) -> bool:
        """Return true if a site is one of these places."""
        if site.layer is not None and site.layer in self.leave_out:
            return False
        if site.role in LAYERS:
            return any(_is_named(site, name) for name in self.linears)
        return site.role in self.roles or site.place in self.roles

    def absent(self, sites: Iterable[Site]) -> list[str]:
        """Return the chosen places that these sites lack, in words."""
        held = [site for site in sites if self.hold(site)]
        names = [name for name in self.linears if not any(_is_named(site, name) for site in held)]
        sublayers = replace(self, linears=())
        roles = [str(sublayers)] if self.roles and not any(map(sublayers.hold, held)) else []
        return [*roles, *(f"`{name}`" for name in names)]

    def __str__(self) -> str:
        names = " or ".join([*self.roles, *(f"`{name}`" for name in self.linears)])
        left_out = ", ".join(map(str, self.leave_out))
        return f"{names} outside the layers {left_out}" if left_out else names


def _is_named(site: Site, name: str) -> bool:
    return site.name == name if site.is_outside else f".{site.place}".endswith(f".{name}")


def _fused_instead(absent: Iterable[str], sites: Iterable[Site]) -> str | None:
    """Return advice to name the fused layer that computes the absent ones inseparably."""
    for site in sites:
        within = _FUSED.get(site.name.rpartition(".")[2], ())
        parts = [name for name in absent if name.strip("`").rpartition(".")[2] in within]
        if parts:
            known = f"the base computes {', '.join(parts)} in one layer, mixed"
            return f"{known}: name `{site.place}` instead, or give its parts in a site map"
    return None


@dataclass(frozen=True)
class Component:
    """One graph of a kind, by a name for files and slots, the places at which it acts, and the widths of its symbols.

    The site's own widths are not among them; each width follows from those before it.
    """

    graph_name: str
    graph: AdapterGraph
    places: Places
    widths: Mapping[str, Width] = field(default_factory=dict)

    def widths_at(self, site: Site) -> dict[str, int]:
        """Return a number for each symbol; `UsageError` if one is unknown, too small, or does not divide."""
        widths = {"d": site.width, "d_in": site.width_in}
        for symbol, width in self.widths.items():
            widths[symbol] = width if isinstance(width, int) else width.at(site.layer, widths)
        unknown = [symbol for symbol in self.graph.symbols() if symbol not in widths]
        if unknown:
            raise UsageError(f"graph `{self.graph_name}` has a width that is not given", found=", ".join(unknown))
        return {symbol: widths[symbol] for symbol in self.graph.symbols()}

    def tensor_names(self, site: str) -> dict[str, str]:
        """Return the tensor name of each parameter of the graph at a site; shared tensors have one name."""
        common = f"{SHARED}.{self.graph_name}"
        return {name: f"{common if name in self.graph.shared else site}.{name}" for name in self.graph.parameters}


@dataclass(frozen=True)
class Kind:
    """A kind of adapter: at each site acts the first of its components whose places have the site.

    `scheme` draws the first weights where no other is chosen, a name in `initialise.SCHEMES`. `width` is the symbol of
    the width that users vary, such as `b`; `None` if there is no such width.
    """

    name: str
    components: tuple[Component, ...]
    scheme: str = "small_normal"
    width: str | None = None

    @property
    def graph(self) -> AdapterGraph:
        """The graph of its first component."""
        return self.components[0].graph

    @property
    def graphs(self) -> dict[str, AdapterGraph]:
        """Its graphs by name."""
        return {component.graph_name: component.graph for component in self.components}

    def component_at(self, site: Site) -> Component | None:
        """Return the component at a site; `None` without one."""
        return next((component for component in self.components if component.places.hold(site)), None)

    def at(self, sites: Iterable[Site]) -> Iterator[tuple[Site, Component]]:
        """Yield its sites with their components."""
        for site in sites:
            component = self.component_at(site)
            if component is not None:
                yield site, component

    def placed(self, sites: Iterable[Site]) -> list[tuple[Site, Component]]:
        """Return what `at` returns, for a base that must have all its places.

        Raises `AdapterError` if the base lacks one of them, or a layer that is left out.
        """
        sites = list(sites)
        absent = [name for component in self.components for name in component.places.absent(sites)]
        layers = {site.layer for site in sites}
        left_out = {layer for each in self.components for layer in each.places.leave_out} - layers
        if left_out:
            raise AdapterError(
                "a layer is left out that the base does not have",
                found=", ".join(map(str, sorted(left_out))),
                expected=f"below {1 + max((site.layer for site in sites if site.layer is not None), default=-1)}",
            )
        if absent:
            raise AdapterError(
                f"the base has no site for kind `{self.name}`",
                found=", ".join(dict.fromkeys(site.place for site in sites)) or None,
                expected=", ".join(absent),
                fix=_fused_instead(absent, sites)
                or "choose other places or another kind; "
                + command("open_base(MODEL).sites", "sites MODEL")
                + " lists what a base has",
            )
        return list(self.at(sites))

    def placements(self, sites: Iterable[Site]) -> dict[str, Placement]:
        """Return the placements in a base, with widths; empty without any of the places. Raises as `widths_at`."""
        return {site.name: Placement(each.graph_name, each.widths_at(site)) for site, each in self.at(sites)}

    def with_widths(self, **widths: Width) -> Kind:
        """Return the kind with other widths, such as `b=32`, in those of its components that have them.

        Raises `UsageError` if none has such a width, or it is below 1.
        """
        for symbol, width in widths.items():
            if not any(symbol in component.widths for component in self.components):
                raise UsageError(f"kind `{self.name}` has no width `{symbol}`", found=width)
            if isinstance(width, int) and width < 1:
                raise UsageError(f"the width `{symbol}` is too small", found=width, expected="at least 1")
        components = []
        for component in self.components:
            changed = {symbol: widths.get(symbol, width) for symbol, width in component.widths.items()}
            components.append(replace(component, widths=changed))
        return replace(self, components=tuple(components))

    def places(self) -> str:
        """Return the places where it acts, in words."""
        return "; ".join(dict.fromkeys(str(component.places) for component in self.components))


@dataclass(frozen=True)
class KindOption(Option):
    """An option of a kind, in the annotation of a field of its options.

    Attributes:
        sweeps: a sweep varies it as the `width` of the kind, or as the `place` where it acts.
        packed: `pack` takes it, as no tensor shows it; `required` where a default could be silently wrong.
    """

    sweeps: Literal["width", "place"] | None = None
    packed: Literal["no", "optional", "required"] = "no"


@dataclass(frozen=True, kw_only=True)
class LayerOptions:
    """The option of every kind that acts in layers."""

    leave_out: Annotated[
        tuple[str | int, ...], KindOption("Layers without the adapter, counted from 0.", packed="optional")
    ] = ()

    def left_out(self) -> tuple[int, ...]:
        """Return the numbers of these layers; raises `UsageError` for anything else."""
        wrong = [layer for layer in map(str, self.leave_out) if not layer.isdecimal()]
        if wrong:
            what = argument("leave_out") + " names no layer"
            raise UsageError(what, found=f"`{wrong[0]}`", expected="numbers from 0")
        return tuple(map(int, self.leave_out))


def check_sublayers(roles: tuple[str, ...]) -> tuple[str, ...]:
    """Return the roles, of which each must be a sublayer, or `decoder.ffn` and the like; raises `UsageError`."""
    wrong = [role for role in roles if role.removeprefix("encoder.").removeprefix("decoder.") not in SUBLAYERS]
    if wrong:
        raise UsageError(
            argument("sublayers") + " names no sublayer",
            found=f"`{wrong[0]}`",
            expected="`attention`, `cross_attention` and `ffn`; of one part of a base as `decoder.ffn`",
        )
    return roles


def not_shown(kind: str, option: str) -> UsageError:
    """Return the error for an option that `pack` needs and that was not given."""
    return UsageError(f"nothing in the tensors shows the {option} of `{kind}`", fix="give " + argument(option))


def nothing_shown(_: Mapping[str, np.ndarray], __: Mapping[str, Any]) -> dict[str, Any]:
    """Return no options: those of a kind that tensors do not show."""
    return {}


Options = TypeVar("Options")


@dataclass(frozen=True)
class Maker(Generic[Options]):
    """A published kind: called with options, or without, it returns the kind.

    `formula` states the formula, the places and the source; `defaults` are its options, a dataclass. `shown` reads
    options off tensors such as `<site>.down.weight` [d, b], given those that were stated.
    """

    name: str
    formula: str
    make: Callable[[Options], Kind]
    defaults: Options
    shown: Callable[[Mapping[str, np.ndarray], Mapping[str, Any]], dict[str, Any]] = nothing_shown

    def __call__(self, options: Options | None = None) -> Kind:
        """The kind with these options, or with its own; raises `UsageError` for other options or values."""
        if options is not None and type(options) is not type(self.defaults):
            expected = type(self.defaults).__name__
            raise UsageError("options of another kind", found=type(options).__name__, expected=expected)
        chosen = self.defaults if options is None else options
        for name, (_, option) in self.options().items():
            value = getattr(chosen, name)
            for number in value.values() if isinstance(value, Mapping) else (value,):
                if option.least is not None and number is not None and number < option.least:
                    expected = f"at least {option.least}"
                    raise UsageError(argument(name) + " is too small", found=number, expected=expected)
        return self.make(chosen)

    def options(self) -> dict[str, tuple[Any, KindOption]]:
        """Return the type and the option of each field that is one, by name."""
        hints = get_type_hints(type(self.defaults), include_extras=True)
        parts = {name: get_args(hint) for name, hint in hints.items() if get_origin(hint) is Annotated}
        return {name: (kind, option) for name, (kind, option) in parts.items()}

    def swept(self, what: str) -> str | None:
        """Return the name of the option that a sweep varies as its width or place; `None` if there is none."""
        return next((name for name, (_, option) in self.options().items() if option.sweeps == what), None)

    def changed(self, **options: object) -> Kind:
        """Return the kind with some options changed; `UsageError` for unknown options or wrong values."""
        self.check_known(options)
        defaults: Any = self.defaults
        return self(replace(defaults, **options))

    def check_known(self, options: Iterable[str]) -> None:
        """Refuse with `UsageError` options that the kind does not have."""
        defaults: Any = self.defaults
        known = {option.name for option in fields(defaults)}
        unknown = [name for name in options if name not in known]
        if unknown:
            raise UsageError(
                f"kind `{self.name}` has no such option",
                found=joined(map(argument, unknown)),
                expected=joined(map(argument, self.options())),
            )

    def fitting(self, tensors: Mapping[str, np.ndarray], stated: Mapping[str, Any]) -> Kind:
        """Return the kind with the options that tensors show and those given, which take precedence.

        Raises:
            UsageError: an option is unknown, or one is needed that nothing shows.
            AdapterError: the tensors are not of this kind.
        """
        for name, (_, option) in self.options().items():
            if option.packed == "required" and name not in stated:
                raise not_shown(self.name, name)
        return self.changed(**{**self.shown(tensors, stated), **stated})

"""What a kind of adapter is: graphs, where they act, and how wide they are."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace

from adapter_export.errors import AdapterError, UsageError
from adapter_export.graph.adapter import SHARED, Placement
from adapter_export.graph.graph import AdapterGraph
from adapter_export.graph.kinds.places import Place, Places, fused_instead, without_layer
from adapter_export.graph.kinds.widths import Width


@dataclass(frozen=True)
class KindPart:
    """One graph of a kind.

    Attributes:
        graph_name: names the graph in files and, where two topologies meet at one site, in slot names.
        graph: what is computed at each site.
        places: the sites at which it acts.
        widths: the widths of its symbols beside the site's own, in an order in which each follows from those before.
    """

    graph_name: str
    graph: AdapterGraph
    places: Places
    widths: Mapping[str, Width] = field(default_factory=dict)

    def widths_at(self, site: Place) -> dict[str, int]:
        """A number for each symbol of the graph.

        Raises:
            UsageError: a width is not known, too small, or does not divide as it must.
        """
        found = {"d": site.width, "d_in": site.width_in}
        for symbol, width in self.widths.items():
            found[symbol] = width if isinstance(width, int) else width.at(site.layer, found)
        unknown = [symbol for symbol in self.graph.symbols() if symbol not in found]
        if unknown:
            raise UsageError(f"graph `{self.graph_name}` has a width that is not given", found=", ".join(unknown))
        return {symbol: found[symbol] for symbol in self.graph.symbols()}

    def tensor_names(self, site: str) -> dict[str, str]:
        """The tensor behind each parameter of the graph at a site; what is shared has one name at all sites."""
        common = f"{SHARED}.{self.graph_name}"
        return {name: f"{common if name in self.graph.shared else site}.{name}" for name in self.graph.parameters}


@dataclass(frozen=True)
class Kind:
    """What acts where.

    Attributes:
        name: the kind's name.
        parts: its graphs; the first one whose places hold a site acts there.
        scheme: how its weights are drawn where nobody says otherwise, a name in `initialise.SCHEMES`.
    """

    name: str
    parts: tuple[KindPart, ...]
    scheme: str = "small_normal"

    @property
    def graph(self) -> AdapterGraph:
        """The graph of its first part."""
        return self.parts[0].graph

    @property
    def graph_name(self) -> str:
        """The name of its first graph."""
        return self.parts[0].graph_name

    @property
    def graphs(self) -> dict[str, AdapterGraph]:
        """Its graphs by name."""
        return {part.graph_name: part.graph for part in self.parts}

    def part_at(self, site: Place) -> KindPart | None:
        """What acts at a site, if anything does."""
        return next((part for part in self.parts if part.places.hold(site)), None)

    def at(self, sites: Iterable[Place]) -> Iterator[tuple[Place, KindPart]]:
        """The sites at which it acts, with what acts there."""
        for site in sites:
            part = self.part_at(site)
            if part is not None:
                yield site, part

    def placed(self, sites: Iterable[Place]) -> list[tuple[Place, KindPart]]:
        """Likewise, where each of its places must be there.

        Raises:
            AdapterError: the base has none of the sites of a part, no linear layer of one of its names, or not the
                layers that are left out.
        """
        sites = list(sites)
        absent = [name for part in self.parts for name in part.places.absent(sites)]
        left_out = {layer for part in self.parts for layer in part.places.leave_out} - {site.layer for site in sites}
        if left_out:
            raise AdapterError(
                "a layer is left out that the base does not have",
                found=", ".join(map(str, sorted(left_out))),
                expected=f"below {1 + max((site.layer for site in sites if site.layer is not None), default=-1)}",
            )
        if absent:
            raise AdapterError(
                f"the base has no site for kind `{self.name}`",
                found=", ".join(dict.fromkeys(without_layer(site) for site in sites)) or None,
                expected=", ".join(absent),
                fix=fused_instead(absent, sites)
                or "choose other places or another kind; `adapter-export sites MODEL` lists what a base has",
            )
        return list(self.at(sites))

    def placements(self, sites: Iterable[Place]) -> dict[str, Placement]:
        """What acts where in a base, with its widths; empty if the base has none of the places.

        Raises:
            UsageError: a width is not known, or does not divide as it must.
        """
        return {site.name: Placement(part.graph_name, part.widths_at(site)) for site, part in self.at(sites)}

    def with_widths(self, **widths: Width) -> Kind:
        """The kind with other widths, such as `b=32`, in those of its parts that have them.

        Raises:
            UsageError: none of its parts has such a width, or one is below 1.
        """
        for symbol, width in widths.items():
            if not any(symbol in part.widths for part in self.parts):
                raise UsageError(f"kind `{self.name}` has no width `{symbol}`", found=width)
            if isinstance(width, int) and width < 1:
                raise UsageError(f"the width `{symbol}` is too small", found=width, expected="at least 1")
        return replace(self, parts=tuple(_rewidened(part, widths) for part in self.parts))

    def leaving_out(self, *layers: int) -> Kind:
        """The kind without the sites of some layers."""
        return self._elsewhere(lambda places: replace(places, leave_out=(*places.leave_out, *layers)))

    def at_roles(self, *roles: str) -> Kind:
        """The kind at sublayers of other roles, in those of its parts that act at sublayers."""
        return self._elsewhere(lambda places: replace(places, roles=roles) if places.are_sublayers else places)

    def _elsewhere(self, moved: Callable[[Places], Places]) -> Kind:
        return replace(self, parts=tuple(replace(part, places=moved(part.places)) for part in self.parts))

    def places(self) -> str:
        """Where it acts, in words."""
        return "; ".join(dict.fromkeys(str(part.places) for part in self.parts))


def _rewidened(part: KindPart, widths: Mapping[str, Width]) -> KindPart:
    changed = {symbol: widths.get(symbol, width) for symbol, width in part.widths.items()}
    return replace(part, widths=changed)

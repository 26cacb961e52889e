"""Sites of a graph paired with those of the trained model, by the weights of their layers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from adapter_export.errors import BaseModelError
from adapter_export.numerics.weight_match import Counterpart
from adapter_export.sites.linear_layers import layer_of
from adapter_export.sites.site import LAYERS, Site, SiteMap
from adapter_export.sites.view import FlowIndex


@dataclass(frozen=True)
class SitePairs:
    """Facts of the trained model's sites for those of a graph.

    Attributes:
        renamed: new names of sites, by their names in the graph.
        paths: module paths in the trained model, by the new names.
    """

    renamed: Mapping[str, str]
    paths: Mapping[str, str]

    def applied(self, sites: SiteMap) -> SiteMap:
        """Return the sites with these names and paths; other sites stay as they are."""
        return SiteMap(tuple(map(self._named, sites.sites)), sites.final, sites.width, sites.coverage)

    def _named(self, site: Site) -> Site:
        name = self.renamed.get(site.name, site.name)
        prefix = name.rpartition(".")[0]
        of_parts = {part: path for part in site.parts if (path := self.paths.get(f"{prefix}.{part}")) is not None}
        return replace(site, name=name, path=self.paths.get(name, site.path), part_paths=of_parts)


@dataclass(frozen=True)
class _Rows:
    """Rows of a weight that compute a layer's output."""

    weight: str
    start: int
    end: int

    def __str__(self) -> str:
        return f"rows {self.start} to {self.end} of `{self.weight}`"


@dataclass(frozen=True)
class SiteWeights:
    """The sites of a model, and its dataflow graph with the names of weights."""

    index: FlowIndex
    sites: SiteMap

    def rows(self) -> dict[str, _Rows]:
        """Return the weight rows of each layer, by the site's name; splits of blocks have none."""
        weights = {}
        for node in self.index.nodes:
            layer = layer_of(self.index, node) if node.linear and node.weight is not None else None
            if layer is not None and node.weight is not None:
                weights[layer.h] = node.weight
        rows_by_site = {}
        for site in self.sites.of_roles(LAYERS):
            if site.h in weights and (site.role == "linear" or site.blocks == 1):
                start, end = next(iter(site.parts.values())) if site.role == "part" else (0, site.width)
                rows_by_site[site.name] = _Rows(weights[site.h], start, end)
        return rows_by_site


def pair_sites(
    stored: SiteWeights, trained: SiteWeights, counterparts: Sequence[Counterpart], where: object
) -> SitePairs:
    """Pair the sites of a graph with those of the model that its weights come from.

    Adapters name sites, so a site must have the weight of the trained model's site of that name.

    Raises:
        BaseModelError: a site has the weight of another one.
    """
    ours, theirs = stored.rows(), trained.rows()
    made_from = {name: _made_from(rows, counterparts) for name, rows in ours.items()}
    for name, rows in theirs.items():
        if name in made_from and rows not in made_from[name]:
            raise BaseModelError(
                "has the trained model's weights at other sites",
                where=f"{where}, `{name}`",
                found=" or ".join(map(str, made_from[name])) or f"{ours[name]}, joined of several layers",
                expected=str(rows),
                fix="pass the model that the graph was built from",
            )
    known = {site.name: site for site in trained.sites}
    at = {rows: name for name, rows in theirs.items() if known[name].is_outside}
    renamed = {
        site.name: name
        for site in stored.sites.sites
        if site.is_outside and site.name not in known
        for name in [at.get(rows) for rows in made_from.get(site.name, ())][:1]
        if name is not None
    }
    twins = {name: known.get(name) for name in (renamed.get(site.name, site.name) for site in stored.sites)}
    # a layer that the trained model has joined with others has no module of its own there
    apart = {name: twin.path for name, twin in twins.items() if twin is not None and twin.role != "part"}
    return SitePairs(renamed, {name: path for name, path in apart.items() if path is not None})


def _made_from(rows: _Rows, counterparts: Sequence[Counterpart]) -> list[_Rows]:
    """Return the trained rows that some stored ones were made from, in one piece each."""
    rows_made = []
    for each in counterparts:
        if each.weight == rows.weight and each.start <= rows.start and rows.end <= each.start + each.rows:
            shift = each.trained_start - each.start
            rows_made.append(_Rows(each.trained, rows.start + shift, rows.end + shift))
    return rows_made

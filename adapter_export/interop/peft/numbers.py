"""Layers by their numbers and names, for bases whose modules have other paths than the adapter's, or none.

Models are renamed: ViT's `encoder.layer.0.attention.attention.query` is `layers.0.attention.q_proj` in transformers 5.
Graphs of other exporters have no module paths at all. Sites have names of their own, and this room knows what the
layers of transformers that become such sites are called. It is asked only where no path agrees, and the user is told.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

from adapter_export.sites.site import LAYERS, Site, SiteMap

_NAMES: Mapping[str, tuple[str, ...]] = {
    "attention.output": ("attention.output.dense", "o_proj", "out_proj", "out_lin"),
    "attention.query": ("query", "q_proj", "q_lin"),
    "attention.key": ("key", "k_proj", "k_lin"),
    "attention.value": ("value", "v_proj", "v_lin"),
    "ffn.up": ("intermediate.dense", "up_proj", "fc1", "lin1"),
    "ffn.gate": ("gate_proj",),
    "ffn.down": ("output.dense", "down_proj", "fc2", "lin2"),
}
"""The ends of paths by the names of sites; the first that fits counts."""

_ELSEWHERE = ("decoder", "cross", "encoder_attn", "EncDec")
"""Words in paths of layers that are not those of the same number in an encoder."""


def sites_by_number(paths: Collection[str], sites: SiteMap) -> dict[str, Site]:
    """The site of each module, by the number of its layer and its name.

    Returns:
        A site for every path; nothing at all where one has no number, or several, a name that is not known, or a layer
        that the base has not, or where two would be one site.
    """
    known = {site.name: site for site in sites.of_roles(LAYERS)}
    found = {path: known.get(_site_name(path) or "") for path in paths}
    complete = {path: site for path, site in found.items() if site is not None}
    apart = len({site.name for site in complete.values()}) == len(paths)
    return complete if apart and len(complete) == len(paths) else {}


def lost_by_number(found: Mapping[str, Site], sites: SiteMap) -> list[str]:
    """The sites of other layers whose like the adapter acts at."""
    kinds = {_kind(site) for site in found.values()}
    taken = {site.name for site in found.values()}
    return [site.name for site in sites.of_roles(LAYERS) if _kind(site) in kinds and site.name not in taken]


def _kind(site: Site) -> str:
    return site.name.partition(".")[2].partition(".")[2]


def _site_name(path: str) -> str | None:
    numbers = [part for part in path.split(".") if part.isdecimal()]
    names = [name for name, ends in _NAMES.items() if f".{path}".endswith(tuple(f".{end}" for end in ends))]
    if len(numbers) != 1 or not names or any(word in path for word in _ELSEWHERE):
        return None
    return f"layers.{int(numbers[0])}.{names[0]}"

"""`adapter-export sites`: where adapters can act in a base."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from itertools import groupby
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

import click

from adapter_export.cli.options import (
    PATH,
    check_free,
    examples,
    force_option,
    json_option,
    site_map_option,
    trust_pickle_option,
)

if TYPE_CHECKING:
    from rich.tree import Tree

    from adapter_export.cli.sources import Source
    from adapter_export.sites.site import Site, SiteMap
    from adapter_export.sites.site_map import View

_Layer = tuple[str, tuple["Site", ...]]
"""The name of a layer, such as `decoder.layers.0`, and its sublayers."""

_LAYER = re.compile(r"\blayers\.\d+\.")


@click.command(
    epilog=examples(
        "adapter-export sites model.pt",
        "adapter-export sites model.pt --write-site-map sites.json",
        "adapter-export sites model.onnx --json | jq '.sites[].name'",
    )
)
@click.argument("model", type=PATH)
@site_map_option
@click.option(
    "--write-site-map",
    "written",
    type=PATH,
    metavar="FILE",
    help="Write the sites as a site map, to be edited; that of a torch base has the names in its ONNX graph as well.",
)
@force_option
@trust_pickle_option
@json_option
def sites(
    model: Path, site_map: Path | None, written: Path | None, force: bool, trust_pickle: bool, as_json: bool
) -> None:
    """Show where adapters can act in MODEL.

    MODEL is a torch archive, a Hugging Face folder, an ONNX file or an onnxruntime-genai folder. Sites are found by
    the structure of the base's dataflow. The first table gives the sublayers: the name by which adapters know a site,
    the width of the residual stream there, the module in the torch model, the value that an adapter replaces, and what
    reads the sum of that value and the residual stream. The second gives the linear layers inside them, the parts of
    fused ones, which are sites as well, and the embeddings; those that differ in the number of their layer alone share
    a row.
    """
    from adapter_export.cli.output import emit_json
    from adapter_export.cli.sources import FORM_NAMES, open_source

    if written is not None:
        check_free(written, force=force)
    source = open_source(model, trust_pickle=trust_pickle, site_map=site_map)
    found = source.sites()
    if written is not None:
        _write(source, found, written, force)
    if as_json:
        emit_json(
            {
                "model": str(model),
                "form": source.form,
                "fingerprint": source.fingerprint,
                "width": found.width,
                "final": found.final,
                "sites": [asdict(site) for site in found.sublayers],
                "linear": [asdict(site) for site in found.of_roles(("linear",))],
                "parts": [asdict(site) for site in found.of_roles(("part",))],
                "embeddings": [asdict(site) for site in found.of_roles(("embeddings",))],
            }
        )
        return
    _show(found, f"{model}  {FORM_NAMES[source.form]}, {len(found.sublayers)} sites, width {found.width}")


def _write(source: Source, found: SiteMap, path: Path, force: bool) -> None:
    """Write a site map; for a torch base with the names of both views, as training and building need them."""
    from adapter_export.cli.output import say
    from adapter_export.cli.sources import OnnxSource, as_onnx
    from adapter_export.format.site_map_json import write_site_map

    with TemporaryDirectory(prefix="adapter-export-") as folder:
        in_onnx = as_onnx(source, Path(folder), lambda _: None).sites
    views: dict[View, SiteMap] = {"onnx": in_onnx}
    if not isinstance(source, OnnxSource):
        views["torch"] = found
    write_site_map(views, path, force=force)
    say(f"Next: edit {path}, then give it as --site-map {path} to `sites`, `train`, `build` and `check`")


def _show(found: SiteMap, title: str) -> None:
    from adapter_export.cli.output import console, table

    rows = [
        (site.name, site.role, site.width, site.path or "", f"{site.h}", site.followed_by) for site in found.sublayers
    ]
    out = console()
    columns = ("site", "role", "width", "torch path", "value", "followed by")
    out.print(table(None, columns, rows, numbers="llr"))
    out.print()
    inner = [(*key, names[0] if len(names) == 1 else f"{names[0]} …  ({len(names)})") for key, names in _inner(found)]
    out.print(table(None, ("inside", "width", "parts", "torch path", "site"), inner))
    out.print()
    out.print(_drawing(found, title))


def _inner(found: SiteMap) -> Iterable[tuple[tuple[str, str, str, str], list[str]]]:
    """The linear layers and the embeddings, and the names of all that differ in the number of their layer alone."""
    rows: dict[tuple[str, str, str, str], list[str]] = {}
    for site in found.of_roles(("embeddings", "linear")):
        inside = _LAYER.sub("", site.name, count=1)
        width = f"{site.width_in} → {site.width}" if site.u is not None else f"{site.width}"
        parts = ", ".join(f"{name} {start}–{end}" for name, (start, end) in site.parts.items())
        parts += f" of each {site.width // site.blocks}" if site.blocks > 1 else ""
        path = re.sub(r"\b\d+\b", "*", site.path or "", count=1)
        rows.setdefault((inside, width, parts, path), []).append(site.name)
    return rows.items()


def _drawing(found: SiteMap, title: str) -> Tree:
    """The layers as a tree; layers of one structure are drawn once."""
    from rich.text import Text
    from rich.tree import Tree

    tree = Tree(Text(title, style="bold"), guide_style="dim")
    for group in _alike(found.sublayers):
        (first, members), last = group[0], group[-1][0]
        branch = tree.add(Text(first if first == last else f"{first} … {last}  ({len(group)} alike)"))
        for site in members:
            twig = branch.add(
                Text.assemble((site.role, "cyan"), f"  h + x → {site.followed_by}   ", ("▣ site", "green"))
            )
            inside = [inner.name.removeprefix(f"{site.name}.") for inner in _inside(found, site)]
            if inside:
                twig.add(Text.assemble("  ".join(f"{name} ▫" for name in inside), style="dim"))
    tree.add(Text.assemble(f"{found.final}  ", ("▣ head", "green")))
    return tree


def _inside(found: SiteMap, sublayer: Site) -> Iterable[Site]:
    return (site for site in found.of_roles(("linear", "part")) if site.name.startswith(f"{sublayer.name}."))


def _alike(all_sites: Iterable[Site]) -> list[Sequence[_Layer]]:
    """Runs of layers with the same roles, widths and surroundings."""
    layers = [(name, tuple(members)) for name, members in groupby(all_sites, key=_layer_name)]
    return [list(run) for _, run in groupby(layers, key=_structure)]


def _layer_name(site: Site) -> str:
    found = _LAYER.search(site.name)
    return f"layers.{site.layer}" if found is None else site.name[: found.end() - 1]


def _structure(layer: _Layer) -> tuple[object, ...]:
    name, members = layer
    return name.partition("layers.")[0], *((site.role, site.width, site.followed_by) for site in members)

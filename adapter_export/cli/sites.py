"""`adapter-export sites`: where adapters can act in a base."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING

import click

from adapter_export.cli.options import PATH, examples, json_option, trust_pickle_option

if TYPE_CHECKING:
    from rich.tree import Tree

    from adapter_export.sites.site import Site, SiteMap

_Layer = tuple[int, tuple["Site", ...]]


@click.command(
    epilog=examples(
        "adapter-export sites model.pt",
        "adapter-export sites model.onnx --json | jq '.sites[].name'",
    )
)
@click.argument("model", type=PATH)
@trust_pickle_option
@json_option
def sites(model: Path, trust_pickle: bool, as_json: bool) -> None:
    """Show where adapters can act in MODEL.

    MODEL is a torch archive, a Hugging Face folder, an ONNX file or an onnxruntime-genai folder. Sites are found by
    the structure of the base's dataflow. The table gives the name by which adapters know a site, the width of the
    residual stream there, the module in the torch model, the value that an adapter replaces, and what reads the sum
    of that value and the residual stream.
    """
    from adapter_export.cli.output import emit_json
    from adapter_export.cli.sources import FORM_NAMES, open_source

    source = open_source(model, trust_pickle=trust_pickle)
    found = source.sites()
    if as_json:
        emit_json(
            {
                "model": str(model),
                "form": source.form,
                "fingerprint": source.fingerprint,
                "width": found.width,
                "final": found.final,
                "sites": [asdict(site) for site in found],
            }
        )
        return
    _show(found, f"{model}  {FORM_NAMES[source.form]}, {len(found.sites)} sites, width {found.width}")


def _show(found: SiteMap, title: str) -> None:
    from adapter_export.cli.output import console, table

    rows = [(site.name, site.role, site.width, site.path or "", f"{site.h}", site.followed_by) for site in found]
    out = console()
    columns = ("site", "role", "width", "torch path", "value", "followed by")
    out.print(table(None, columns, rows, numbers="llr"))
    out.print()
    out.print(_drawing(found, title))


def _drawing(found: SiteMap, title: str) -> Tree:
    """The layers as a tree; layers of one structure are drawn once."""
    from rich.text import Text
    from rich.tree import Tree

    tree = Tree(Text(title, style="bold"), guide_style="dim")
    for group in _alike(found.sites):
        (first, members), last = group[0], group[-1][0]
        name = f"layers.{first}" if first == last else f"layers.{first} … layers.{last}  ({len(group)} alike)"
        branch = tree.add(Text(name))
        for site in members:
            branch.add(Text.assemble((site.role, "cyan"), f"  h + x → {site.followed_by}   ", ("▣ site", "green")))
    tree.add(Text.assemble(f"{found.final}  ", ("▣ head", "green")))
    return tree


def _alike(all_sites: Iterable[Site]) -> list[Sequence[_Layer]]:
    """Runs of layers with the same roles, widths and surroundings."""
    layers = [(number, tuple(members)) for number, members in groupby(all_sites, key=lambda site: site.layer)]
    return [list(run) for _, run in groupby(layers, key=_structure)]


def _structure(layer: _Layer) -> tuple[tuple[str, int, str], ...]:
    return tuple((site.role, site.width, site.followed_by) for site in layer[1])

"""Show where adapters can act in a model."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from adapter_export.address import Address, PathLike
from adapter_export.bases.base import Base, OpenOptions
from adapter_export.bases.opening import base_for
from adapter_export.bases.sites import Sites
from adapter_export.commands.command import Command, Screen
from adapter_export.option import SITE_MAP, TRUST_PICKLE, Force, Option
from adapter_export.reporting import SILENT, Reporter
from adapter_export.safe_io.output import Output


def sites(
    model: Base | Address,
    *,
    site_map: Annotated[PathLike | None, SITE_MAP] = None,
    write_site_map: Annotated[
        PathLike | None,
        Option("Write the sites as an editable site map; a torch base's map includes graph names.", "FILE"),
    ] = None,
    trust_pickle: Annotated[bool, TRUST_PICKLE] = False,
    force: Force = False,
    reporter: Reporter = SILENT,
) -> Sites:
    """Show where adapters can act in MODEL.

    MODEL is a torch archive, a Hugging Face folder, an ONNX file or an onnxruntime-genai folder. Sites are found in the
    base's dataflow. The first table lists the sublayers: the site's name, the width of the residual stream, the torch
    module, the value that an adapter replaces, and the operator that reads that value's sum with the residual stream.
    The second table lists linear layers inside them, parts of fused layers, and embeddings, which are also sites; sites
    that differ only in their layer share a row. Below the drawing are layers with weights at which no adapter can act,
    and unplaced sublayers with the reason. `train`, `pack`, `import` and `build` refuse a base with unplaced sublayers
    unless `--site-map` names their sites.

    Args:
        model: a base, or a path that `open_base` accepts.
        site_map: a file whose sites override or complete the discovered ones.
        write_site_map: the site map to write.
        trust_pickle: load the base even if it could run code.
        force: replace `write_site_map`.
        reporter: receives notes about changes made to the base when it was opened.

    Raises:
        NoSitesError: the base has no sites.
        BaseModelError: the model cannot be a base.
        OutputExistsError, WriteError: the site map cannot be written.
    """
    output = None if write_site_map is None else Output(Path(write_site_map), force)
    if output is not None:
        output.ensure_writable()
    model_sites = base_for(model, OpenOptions(site_map, trust_pickle), reporter, recorded=True).sites
    if output is not None:
        model_sites.write_site_map(output.path, force=output.force)
    return model_sites


def _show(sites: Sites, screen: Screen) -> None:
    base, covered = sites.base, sites.map.coverage
    screen.show(sites.table(), sites.inner_table(), "")
    screen.line((f"{screen.given['model']}  {base.form_name}, {covered}, width {sites.map.width}", "bold"))
    for text in sites.drawing().splitlines():
        before, mark, after = text.partition("▣")
        screen.line(before, (f"{mark}{after[:5]}", "green"), after[5:])
    if sites.not_placed:
        screen.line(f"without a site: {', '.join(sites.not_placed)}")
    for missing in covered.unplaced:
        screen.line(f"not placed: {', '.join(missing.layers)}: {missing.reason}")
    if "write_site_map" in screen.given:
        file = screen.given["write_site_map"]
        screen.report(f"Next: edit {file}, then pass --site-map {file} to `sites`, `train`, `build` and `check`")


COMMAND = Command(
    sites,
    _show,
    examples=(
        "adapter-export sites model.pt",
        "adapter-export sites model.pt --write-site-map sites.json",
        "adapter-export sites model.onnx --json | jq '.sites[].name'",
    ),
)

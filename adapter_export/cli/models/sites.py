"""`adapter-export sites`: where adapters can act in a base."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from adapter_export.cli.options import Force, Json, SiteMapFile, TrustPickle, command
from adapter_export.option import Option
from adapter_export.safe_io.output import Output


@command(
    "adapter-export sites model.pt",
    "adapter-export sites model.pt --write-site-map sites.json",
    "adapter-export sites model.onnx --json | jq '.sites[].name'",
)
def sites(
    model: Path,
    *,
    site_map: SiteMapFile = None,
    write_site_map: Annotated[
        Path | None,
        Option(
            "Write the sites as a site map, to be edited; that of a torch base has the names in its ONNX graph as "
            "well.",
            "FILE",
        ),
    ] = None,
    force: Force = False,
    trust_pickle: TrustPickle = False,
    as_json: Json = False,
) -> None:
    """Show where adapters can act in MODEL.

    MODEL is a torch archive, a Hugging Face folder, an ONNX file or an onnxruntime-genai folder. Sites are found by
    the structure of the base's dataflow. The first table gives the sublayers: the name by which adapters know a site,
    the width of the residual stream there, the module in the torch model, the value that an adapter replaces, and what
    reads the sum of that value and the residual stream. The second gives the linear layers inside them, the parts of
    fused ones, which are sites as well, and the embeddings; those that differ in the number of their layer alone share
    a row. The line above the drawing says whether every sublayer was placed; below it are the layers with weights at
    which no adapter can act, and the sublayers that were not placed, with the reason. `train`, `pack`, `import` and
    `build` refuse a base with such, unless --site-map names the sites.
    """
    from rich.text import Text

    from adapter_export.cli.bases import opened
    from adapter_export.cli.output import console, emit_json, say, show

    if write_site_map is not None:
        Output(write_site_map, force).ensure_writable()
    base = opened(model, site_map, trust_pickle, from_record=True)
    found = base.sites
    if write_site_map is not None:
        found.write_site_map(write_site_map, force=force)
        file = write_site_map
        say(f"Next: edit {file}, then give it as --site-map {file} to `sites`, `train`, `build` and `check`")
    if as_json:
        emit_json(found.to_json())
        return
    show(found.table(), found.inner_table())
    out = console()
    out.print()
    covered = found.map.coverage
    out.print(Text(f"{model}  {base.form_name}, {covered}, width {found.map.width}", "bold"))
    drawing = Text(found.drawing())
    drawing.highlight_words(["▣ site", "▣ head"], "green")
    out.print(drawing, soft_wrap=True)
    if found.not_placed:
        out.print(f"without a site: {', '.join(found.not_placed)}", markup=False, soft_wrap=True)
    for missing in covered.unplaced:
        out.print(f"not placed: {', '.join(missing.layers)}: {missing.reason}", markup=False, soft_wrap=True)

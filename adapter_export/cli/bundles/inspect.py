"""`adapter-export inspect`: what is in a bundle, an adapter or a model."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import adapter_export as ae
from adapter_export.cli.options import Force, Json, TrustPickle, command
from adapter_export.option import Option
from adapter_export.safe_io.output import Output


@command(
    "adapter-export inspect bundle",
    "adapter-export inspect bundle --key release.pub",
    "adapter-export inspect bundle --svg adapters.svg",
    "adapter-export inspect adapters/trec",
    "adapter-export inspect model.pt --json",
    like=ae.inspect,
)
def inspect(
    path: Path,
    *,
    svg: Annotated[Path | None, Option("Draw where adapters act, or could act in a model.", "FILE")] = None,
    trust_pickle: TrustPickle = False,
    force: Force = False,
    as_json: Json = False,
    **options: Any,
) -> None:
    """Show what is in PATH: a bundle, an adapter folder, or a model.

    The files of a bundle are compared with the hashes in its manifest, and an adapter's tensors with its graph.

    Whether a bundle is signed, and by which key, is shown as the signature says it; with `--key`, it is verified.

    The drawing has a row for each place of the base, a column for each adapter, and a box with its widths where it
    acts. It suits light and dark backgrounds.
    """
    from adapter_export.cli.output import emit_json, say, show

    if svg is not None:
        Output(svg, force).ensure_writable()
    found = ae.inspect(path, trust_pickle=trust_pickle, **options)
    if as_json:
        emit_json(found.to_json())
    else:
        show(found.title, *found.tables)
    if svg is not None:
        with Output(svg, force).file() as temporary:
            temporary.write_text(found.drawing(), encoding="utf-8")
        say(f"wrote {svg}")

"""`adapter-export ship`: a bundle for the platforms that serve models."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import adapter_export as ae
from adapter_export.cli.options import Force, Json, command
from adapter_export.cli.output import emit_json, say
from adapter_export.option import Option


@command(
    "adapter-export ship bundle --layout docker --output image",
    "adapter-export ship bundle --layout triton --output triton --name minilm",
    like=ae.ship,
)
def ship(
    bundle: Path,
    *,
    output: Annotated[Path, Option("The folder to write.", "DIR", "-o")],
    force: Force = False,
    as_json: Json = False,
    **options: Any,
) -> None:
    """Write what a platform needs to serve BUNDLE, with a copy of it: a README there has the next commands.

    `triton`: a model repository whose models take adapters as optional inputs, and a client. `kserve`: an
    `InferenceService`, and a server on KServe's own. `ray`: an application of Ray Serve with multiplexed adapters.
    `docker`: a Dockerfile of `adapter-export serve`, and a compose file.
    """
    shipped = ae.ship(bundle, output, force=force, **options)
    if as_json:
        facts = {"layout": shipped.layout, "name": shipped.name, "files": shipped.files}
        emit_json({"folder": str(shipped.folder), **facts})
        return
    say(f"wrote {shipped.folder}: {', '.join(shipped.files)}")
    say(f"Next: the commands in {shipped.folder / 'README.md'}")

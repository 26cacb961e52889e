"""Write what Triton, KServe, Ray, Docker or transformers.js needs to run a bundle."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from adapter_export.address import Address, PathLike
from adapter_export.bundle.open_bundle import folder_of
from adapter_export.commands.command import Command, Screen
from adapter_export.option import Force, Option
from adapter_export.safe_io.output import Output

if TYPE_CHECKING:
    from adapter_export.plugins.ship.layout import Shipped
    from adapter_export.runtime import Bundle


def ship(
    bundle: Bundle | Address,
    output: Annotated[PathLike, Option("The folder to write.", "DIR", "-o")],
    *,
    layout: Annotated[
        Literal["triton", "kserve", "ray", "docker", "transformers.js"],
        Option("NVIDIA Triton, KServe, Ray Serve, containers, or transformers.js."),
    ],
    name: Annotated[
        str | None, Option("Name of the service or model. Default: the name of the bundle's folder.", "NAME")
    ] = None,
    force: Force = False,
) -> Shipped:
    """Write the files that a platform needs to serve a bundle, with a copy of the bundle.

    `triton`: a model repository whose models take adapters as optional inputs, and a client. `kserve`: an
    `InferenceService`, and a server built on KServe's own. `ray`: a Ray Serve application with multiplexed adapters.
    `docker`: a Dockerfile of `adapter-export serve`, and a compose file. `transformers.js`: the graph `bank` with its
    weights and tokenizer, and a table of adapters. A README in the folder has the next commands.

    Args:
        bundle: the bundle, or its folder.
        output: the folder to write.
        force: replace an existing folder.

    Returns:
        The folder, and the files in it.

    Raises:
        UsageError: not every platform accepts the name, or the bundle lacks what the layout needs: a tokenizer (`ray`
            and `transformers.js`), or a graph `bank` (`transformers.js`).
        InputError: the bundle is damaged.
        OutputExistsError, WriteError: the folder cannot be written.
    """
    folder, target = folder_of(bundle), Output(Path(output), force)
    target.ensure_writable(folder=True, sources=folder)
    from adapter_export.plugins.ship.layout import write_layout

    return write_layout(folder, layout, target, name=folder.resolve().name if name is None else name)


def _show(shipped: Shipped, screen: Screen) -> None:
    screen.report(f"wrote {shipped.folder}: {', '.join(shipped.files)}")
    screen.report(f"Next: the commands in {shipped.folder / 'README.md'}")


def _document(shipped: Shipped, _: Screen) -> Mapping[str, object]:
    facts = {"layout": shipped.layout, "name": shipped.name, "files": shipped.files}
    return {"folder": str(shipped.folder), **facts}


COMMAND = Command(
    ship,
    _show,
    document=_document,
    examples=(
        "adapter-export ship bundle --layout docker --output image",
        "adapter-export ship bundle --layout triton --output triton --name minilm",
        "adapter-export ship bundle --layout transformers.js --output web/minilm",
    ),
)

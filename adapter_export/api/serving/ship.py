"""Write what a platform needs to serve a bundle."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from adapter_export.api.bundles.bundles import folder_of
from adapter_export.api.models.base import PathLike
from adapter_export.option import Option
from adapter_export.safe_io.output import Output

if TYPE_CHECKING:
    from adapter_export.deploy.layout import Shipped
    from adapter_export.runtime import Bundle


def ship(
    bundle: Bundle | PathLike,
    output: PathLike,
    *,
    layout: Annotated[
        Literal["triton", "kserve", "ray", "docker"], Option("For NVIDIA Triton, KServe, Ray Serve, or containers.")
    ],
    name: Annotated[
        str | None, Option("What the service, or the model, is called; the bundle's folder if not given.", "NAME")
    ] = None,
    force: bool = False,
) -> Shipped:
    """Write what a platform needs to serve a bundle, with a copy of the bundle.

    Args:
        bundle: the bundle, or its folder.
        output: the folder to write.
        force: replace what is there.

    Returns:
        The folder, and the files in it.

    Raises:
        UsageError: the name is none that all platforms take, or the bundle has no tokenizer, which `ray` needs.
        InputError: the bundle is damaged.
        OutputExistsError, WriteError: the folder cannot be written.
    """
    from adapter_export.deploy.layout import write_layout

    folder = folder_of(bundle)
    Output(Path(output), force).ensure_writable(folder=True, sources=folder)
    return write_layout(folder, layout, Path(output), name=folder.resolve().name if name is None else name, force=force)

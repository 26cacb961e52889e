"""Charts of `plan`, `sweep` and `drop`, checked before any work."""

from __future__ import annotations

from pathlib import Path

from adapter_export.address import PathLike
from adapter_export.errors import UsageError
from adapter_export.extras import require
from adapter_export.safe_io.output import Output


def writable_plot(given: PathLike | None, *, force: bool, sources: object = ()) -> Path | None:
    """Return the path of the chart, if one was requested.

    Raises:
        UsageError: its name does not end in `.svg` or `.png`.
        OutputExistsError, FileError: the chart cannot be written.
        MissingExtraError: matplotlib is not installed.
    """
    if given is None:
        return None
    path = Path(given)
    if path.suffix.lower() not in (".svg", ".png"):
        raise UsageError("unknown chart format", found=f"`{path.name}`", expected="`.svg` or `.png`")
    Output(path, force).ensure_writable(sources=sources)
    require("matplotlib", "plot", "drawing")
    return path

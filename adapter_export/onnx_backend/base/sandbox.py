"""Open and run an untrusted graph in a child process before this process opens it."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

from adapter_export.errors import BaseModelError, RequestError
from adapter_export.format.site_map_json import read_site_map
from adapter_export.onnx_backend.base.normalise import small_cases
from adapter_export.onnx_backend.base.onnx_base import open_onnx
from adapter_export.onnx_backend.model_session import open_session, try_session
from adapter_export.safe_io.child import Limits, try_out
from adapter_export.safe_io.regular_files import sha256_of

_SECONDS, _BYTES_A_SECOND = 120.0, 20 * 2**20
"""Timeout for a graph, and the minimum read speed of its weights on a slow disk."""

_BYTES, _COPIES = 4 * 2**30, 4
"""Memory limit for a graph, and the number of copies of its weights that are allowed."""


def try_graph(path: Path, site_map: Path | str | None = None) -> None:
    """Open an untrusted graph in a child process, optimize it there, and run it; once per file content.

    ONNX, its converter and ONNX Runtime are C++ code, which a malicious graph can crash.

    Raises:
        BaseModelError: the child crashed, or took too much time or memory; or any error of `open_onnx`.
    """
    if not path.is_file():
        return
    size = sum(file.stat().st_size for file in path.parent.iterdir() if file.is_file())
    content = (sha256_of(path), None if site_map is None else sha256_of(Path(site_map)), size)
    if content in _tried:
        return
    limits = Limits(_SECONDS + size / _BYTES_A_SECOND, _BYTES + _COPIES * size)

    def refusal(reason: str) -> BaseModelError:
        return BaseModelError(
            "cannot be opened: it crashed the sandbox process",
            where=path,
            found=reason,
            expected="a graph that ONNX Runtime opens and runs on small inputs",
            fix="export the model again",
        )

    site_maps = () if site_map is None else (str(site_map),)
    try_out(f"{__name__}:open_and_run", str(path), *site_maps, limits=limits, refusal=refusal)
    _tried.add(content)


_tried: set[tuple[str, str | None, int]] = set()


def open_and_run(path: str, site_map: str | None = None) -> None:
    """Open a base as `open_onnx` does, then a session on it, and run it on small inputs, which it may reject.

    Raises:
        BaseModelError, NoSitesError, FileError, UsageError: as for `open_onnx` and `try_session`.
    """
    base = open_onnx(Path(path), given_sites=None if site_map is None else read_site_map(Path(site_map)))
    session = open_session(base.model, base.folder)
    for case in small_cases(base.inputs):
        with suppress(RequestError):
            try_session(session, case.arrays)

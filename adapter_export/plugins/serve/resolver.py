"""Find adapters by name in a folder, or by reference in a hub or registry, and convert them for a bundle."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from adapter_export.errors import AdapterError, FormatError, InputError
from adapter_export.format.adapter_files import read_adapter
from adapter_export.format.records import record_from_json
from adapter_export.graph.adapter import check_name
from adapter_export.graph.tasks import Task
from adapter_export.plugins.serve.limits import RefusedError
from adapter_export.plugins.serve.models import PIN, LoadedAdapter, LoadedBundle
from adapter_export.safe_io.documents import read_json
from adapter_export.safe_io.regular_files import read_bytes
from adapter_export.safe_io.temporary import temporary_folder

Fetch = Callable[[str], Path]
"""Fetches a reference such as `hf://owner/name`, and returns its local folder."""


@dataclass(frozen=True)
class Resolver:
    """Finds adapters by name.

    The folder contains `NAME.onnx_adapter` with an optional `NAME.json` that records the task, or the folder of an
    adapter, `NAME/adapter_graph.json`, which is converted for the bundle that it fits.

    Attributes:
        folder: the folder to search; `None` finds nothing.
        fetch: fetches references; `None` refuses them.
        most: maximum size of a file in bytes.
    """

    folder: Path | None = None
    fetch: Fetch | None = None
    most: int = 2**28

    def find(self, name: str, bundles: Sequence[LoadedBundle]) -> LoadedAdapter | None:
        """Return an adapter by name, which may be pinned (`name@sha256:…`); `None` if it does not exist.

        Raises:
            RefusedError: 404, its digest differs from the pinned one.
            InputError: it is damaged, or fits none of the bundles.
        """
        name, pin, digest = name.partition(PIN)
        try:
            check_name(name)
        except AdapterError:
            return None
        if self.folder is None:
            return None
        file, whole = self.folder / f"{name}.onnx_adapter", self.folder / name / "adapter_graph.json"
        if file.is_file():
            loaded = _of_file(name, file, self.most)
        elif whole.is_file():
            loaded = _of_adapter(name, whole.parent, bundles)
        else:
            return None
        if pin and loaded.digest != digest:
            raise RefusedError(404, f"adapter `{name}` has the digest sha256:{loaded.digest}, not {digest}")
        return loaded

    def fetch_adapter(self, name: str, reference: str, bundles: Sequence[LoadedBundle]) -> LoadedAdapter:
        """Fetch an adapter by reference, and give it a name.

        Raises:
            RefusedError: 400, fetching is not enabled.
            InputError: the adapter cannot be fetched, is damaged, or fits none of the bundles.
        """
        if self.fetch is None:
            raise RefusedError(400, "fetching from hubs and registries is not enabled on this server")
        folder = self.fetch(reference)
        files = sorted(folder.glob("*.onnx_adapter"))
        if (folder / "adapter_graph.json").is_file():
            return _of_adapter(name, folder, bundles)
        if len(files) == 1:
            return _of_file(name, files[0], self.most)
        raise FormatError(
            "contains no adapter", where=reference, expected="`adapter_graph.json` or one `.onnx_adapter`"
        )


def _of_file(name: str, path: Path, most: int) -> LoadedAdapter:
    record = path.with_suffix(".json")
    task = None
    if record.is_file():
        document = read_json(record)
        stored = document.get("task") if isinstance(document, Mapping) else None
        task = record_from_json(Task, stored)
    return LoadedAdapter(name, read_bytes(path, most), task=task)


def _of_adapter(name: str, folder: Path, bundles: Sequence[LoadedBundle]) -> LoadedAdapter:
    """Convert an adapter for the first bundle of its base that accepts it."""
    from adapter_export.bundle.change import write_fitted  # noqa: PLC0415 - loads onnx, for a second

    adapter = read_adapter(folder)
    fitting = [served.bundle for served in bundles if served.bundle.manifest.base == adapter.base]
    refused: InputError | None = None
    for bundle in fitting:
        with temporary_folder() as temporary:
            path = temporary / "made.onnx_adapter"
            try:
                write_fitted(adapter, path, bundle.home, bundle.manifest)
            except InputError as error:
                refused = error
                continue
            return LoadedAdapter(name, read_bytes(path), task=adapter.task)
    raise refused or AdapterError(
        "was trained on a base that is not served",
        where=f"adapter `{name}`",
        found=adapter.base,
        expected=", ".join(sorted({served.bundle.manifest.base for served in bundles})),
        fix="serve a bundle of its base",
    )

"""Find adapters by name in a folder, or by reference in a hub or a registry, and make them fit a bundle."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from adapter_export.errors import AdapterError, FormatError, InputError
from adapter_export.format.adapter_files import read_adapter
from adapter_export.format.records import record_from_json
from adapter_export.graph.adapter import check_name
from adapter_export.graph.tasks import Task
from adapter_export.safe_io.documents import read_json
from adapter_export.safe_io.regular_files import read_bytes
from adapter_export.server.limits import RefusedError
from adapter_export.server.models import PIN, LoadedAdapter, LoadedBundle

Fetch = Callable[[str], Path]
"""Brings what a reference such as `hf://owner/name` names onto this machine, and returns its folder."""


@dataclass(frozen=True)
class Resolver:
    """Adapters by name.

    A folder has `NAME.onnx_adapter`, beside it `NAME.json` with the record of its task if it answers, or whole
    adapters, `NAME/adapter_graph.json`, which become files for the bundle that they fit.

    Attributes:
        folder: where they are looked for.
        fetch: fetches those of a hub or a registry; `None` fetches nothing.
        most: the largest file that is read, in bytes.
    """

    folder: Path | None = None
    fetch: Fetch | None = None
    most: int = 2**28

    def find(self, name: str, bundles: Sequence[LoadedBundle]) -> LoadedAdapter | None:
        """Return the adapter of a name, which may be pinned (`name@sha256:…`), if there is one.

        Raises:
            RefusedError: 404, it has another digest than is asked for.
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
            found = _of_file(name, file, self.most)
        elif whole.is_file():
            found = _of_adapter(name, whole.parent, bundles)
        else:
            return None
        if pin and found.digest != digest:
            raise RefusedError(404, f"adapter `{name}` has the digest sha256:{found.digest}; asked for was {digest}")
        return found

    def fetched(self, name: str, reference: str, bundles: Sequence[LoadedBundle]) -> LoadedAdapter:
        """Return the adapter that a reference names, under a name.

        Raises:
            RefusedError: 400, this server fetches nothing.
            InputError: it cannot be had, is damaged, or fits none of the bundles.
        """
        if self.fetch is None:
            raise RefusedError(400, "this server was started without leave to fetch from hubs and registries")
        folder = self.fetch(reference)
        files = sorted(folder.glob("*.onnx_adapter"))
        if (folder / "adapter_graph.json").is_file():
            return _of_adapter(name, folder, bundles)
        if len(files) == 1:
            return _of_file(name, files[0], self.most)
        raise FormatError("holds no adapter", where=reference, expected="`adapter_graph.json`, or one `.onnx_adapter`")


def _of_file(name: str, path: Path, most: int) -> LoadedAdapter:
    record = path.with_suffix(".json")
    task = None
    if record.is_file():
        document = read_json(record)
        told = document.get("task") if isinstance(document, Mapping) else None
        task = record_from_json(Task, told)
    return LoadedAdapter(name, read_bytes(path, most), task=task)


def _of_adapter(name: str, folder: Path, bundles: Sequence[LoadedBundle]) -> LoadedAdapter:
    """Make the file of a whole adapter for the first bundle of its base that takes it."""
    from adapter_export.bundle.change import write_fitted  # noqa: PLC0415 - loads onnx, for a second

    adapter = read_adapter(folder)
    fitting = [one.bundle for one in bundles if one.bundle.manifest.base == adapter.base]
    refused: InputError | None = None
    for bundle in fitting:
        with tempfile.TemporaryDirectory() as made:
            path = Path(made, "made.onnx_adapter")
            try:
                write_fitted(adapter, path, bundle.home, bundle.manifest)
            except InputError as error:
                refused = error
                continue
            return LoadedAdapter(name, read_bytes(path), task=adapter.task)
    raise refused or AdapterError(
        "was trained on another base than those that are served",
        where=f"adapter `{name}`",
        found=adapter.base,
        expected=", ".join(sorted({one.bundle.manifest.base for one in bundles})),
        fix="serve a bundle of its base",
    )

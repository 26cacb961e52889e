"""PEFT adapters for a running server: found below a folder, proved, and read with their golden data."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from adapter_export.errors import InputError
from adapter_export.format.manifest_json import read_manifest
from adapter_export.graph.adapter import check_name
from adapter_export.plugins.serve.limits import RefusedError, status_of
from adapter_export.plugins.serve.lora_proof import prove_apart
from adapter_export.plugins.serve.models import LoadedAdapter
from adapter_export.plugins.serve.server_settings import MAX_ADAPTER_BYTES, ServerSettings
from adapter_export.runtime import Bundle
from adapter_export.safe_io.regular_files import read_bytes

LOAD_LORA = "load_lora"
"""The change that loads a PEFT adapter; proved, it becomes the change `load`."""

_CONFIG = "adapter_config.json"


class LoraLoader:
    """Imports PEFT adapters, and proves them as `add` does: against the base, with a copy of the bundle.

    Args:
        root: the folder below which adapters may be.
        base: the model that the bundles were built from.
    """

    def __init__(self, root: Path, base: str) -> None:
        self._root, self._base = root, base
        self._proving = asyncio.Lock()  # each takes the memory of a base

    @classmethod
    def of(cls, settings: ServerSettings) -> LoraLoader | None:
        """Return the loader of a server; `None` unless it may load adapters."""
        if settings.lora_root is None or settings.lora_base is None:
            return None
        return cls(settings.lora_root, settings.lora_base)

    async def prove(self, name: str, path: str, bundles: Mapping[str, Bundle], into: Path) -> dict[str, Any]:
        """Import an adapter, prove it, and return the arguments of the change `load`.

        Args:
            name: its new name.
            path: its folder, absolute or below the root.
            bundles: the bundles that are served, by name.
            into: folder for the adapter's file with its golden data, which the change reads.

        Raises:
            RefusedError: 403, the folder is not below the root; 404, it has no adapter; 400, the adapter is refused, in
                the words of the command line, where the server was started.
            AdapterError: the name is invalid.
        """
        check_name(name)
        folder = self._checked(path)
        places = {key: (str(bundle.home), str(bundle.folder.resolve())) for key, bundle in bundles.items()}
        proof = Path(tempfile.mkdtemp(dir=into))
        async with self._proving:
            try:
                await asyncio.to_thread(prove_apart, folder, self._base, name, places, proof)
            except InputError as error:
                raise RefusedError(status_of(error), error.sentence("shell")) from error
        (proved,) = proof.iterdir()
        return {"name": name, "bundle": proved.name, "proof": str(proved)}

    def _checked(self, path: str) -> Path:
        """Return the folder of an adapter, with symbolic links resolved."""
        root = self._root.resolve()
        folder = (root / path).resolve()
        if not folder.is_relative_to(root):
            raise RefusedError(403, f"`{path}` is not in the folder that this server loads adapters from")
        if not (folder / _CONFIG).is_file():
            raise RefusedError(404, f"there is no adapter at `{path}`; expected a folder with `{_CONFIG}`")
        return folder


def read_proof(folder: Path, name: str) -> LoadedAdapter:
    """Return a proved adapter with its golden data, from a folder that `import_and_prove` wrote."""
    manifest = read_manifest(folder)
    record = next(record for record in manifest.adapters if record.name == name)
    data = read_bytes(folder / record.onnx_adapter, MAX_ADAPTER_BYTES)
    return LoadedAdapter(name, data, task=record.task, proof=Bundle(folder, manifest, verified=False))

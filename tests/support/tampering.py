"""Changes to a bundle after which every hash is right again."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnxruntime as ort

from adapter_export.format.manifest import Manifest
from adapter_export.format.manifest_json import list_files, read_manifest, write_manifest
from adapter_export.format.tensors import read_tensors, write_tensors

Change = Callable[[dict[str, np.ndarray]], None]


def rehash(folder: Path, change: Callable[[Manifest], Manifest] = lambda manifest: manifest) -> None:
    """Write the manifest anew, so that every hash is right again."""
    manifest = replace(change(read_manifest(folder)), files=list_files(folder))
    (folder / "manifest.json").unlink()
    write_manifest(manifest, folder)


def unrecorded(manifest: Manifest) -> Manifest:
    """Return a manifest without recorded runs."""
    adapters = (replace(one, golden=replace(one.golden, recorded={})) for one in manifest.adapters)
    golden = replace(manifest.golden, recorded={})
    return replace(manifest, recorded=None, golden=golden, adapters=tuple(adapters))


def edit(path: Path, change: Change) -> dict[str, np.ndarray]:
    """Change tensors in a file."""
    tensors = {name: value.copy() for name, value in read_tensors(path).items()}
    change(tensors)
    path.unlink()
    write_tensors(path, tensors)
    return tensors


def edit_adapter(folder: Path, name: str, change: Change) -> None:
    """Change both files of an adapter, and the hashes."""
    tensors = edit(folder / f"adapters/{name}.safetensors", change)
    native = ort.AdapterFormat()
    native.set_model_version(read_manifest(folder).model_version)
    native.set_parameters({key: ort.OrtValue.ortvalue_from_numpy(value) for key, value in tensors.items()})
    native.export_adapter(str(folder / f"adapters/{name}.onnx_adapter"))
    rehash(folder)


def scaled(slot: str, factor: float) -> Change:
    def change(tensors: dict[str, np.ndarray]) -> None:
        tensors[slot] *= np.float32(factor)

    return change

"""Import of a PEFT adapter and its proof, in a process of its own: both take torch and the weights of the base."""

from __future__ import annotations

import importlib
import json
import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from adapter_export.bases.opening import open_base
from adapter_export.commands.bundles.add import add
from adapter_export.errors import AdapterError
from adapter_export.format.manifest import Manifest
from adapter_export.format.manifest_json import MANIFEST_FILE, read_manifest
from adapter_export.plugin import public_calls
from adapter_export.safe_io.child import Limits, try_out
from adapter_export.safe_io.documents import parse_json
from adapter_export.safe_io.temporary import temporary_folder

if TYPE_CHECKING:
    from adapter_export.bases.base import Base
    from adapter_export.graph.adapter import Adapter

_IMPORT = "import_peft"
"""The public call that imports PEFT adapters, of another plug-in."""

_LIMITS = Limits(seconds=1800.0, bytes=2**36)
"""Limits for the process; a base of billions of parameters takes minutes."""


def prove_apart(folder: Path, base: str, name: str, bundles: dict[str, tuple[str, str]], proof: Path) -> None:
    """Call `import_and_prove` in a child process.

    Args:
        folder: the folder of the adapter.
        base: the model that the bundles were built from.
        name: the new name of the adapter.
        bundles: the folders of each bundle: the one that the server reads, and the one that it was opened from.
        proof: receives a folder with the name of the bundle that the adapter fits.

    Raises:
        AdapterError: no bundle has the adapter's base, or the process crashed or exceeded its limits.
        InputError: as `import_peft` and `add`.
    """

    def refuse(reason: str) -> AdapterError:
        return AdapterError("could not be imported and proved", where=f"adapter `{name}`", found=reason)

    arguments = (str(folder), base, name, json.dumps(bundles), str(proof))
    try_out(f"{__name__}:import_and_prove", *arguments, limits=_LIMITS, refusal=refuse)


def import_and_prove(folder: str, base: str, name: str, bundles: str, proof: str) -> None:
    """Import an adapter, add it to a copy of the first bundle of its base, and keep its file and golden data.

    Arguments and errors as of `prove_apart`, with JSON for `bundles`.
    """
    places: Any = parse_json(bundles.encode(), "the bundles")
    opened = open_base(base)
    adapter = _imported(folder, opened, name)
    manifests = {key: read_manifest(Path(home)) for key, (home, _) in places.items()}
    fitting = [key for key, manifest in manifests.items() if manifest.base == adapter.base]
    if not fitting:
        raise AdapterError(
            "was trained on a base that is not served",
            where=f"adapter `{name}`",
            found=adapter.base,
            expected=", ".join(sorted({manifest.base for manifest in manifests.values()})),
            fix="serve a bundle of its base",
        )
    with temporary_folder() as temporary:
        copy, (home, source) = temporary / "bundle", places[fitting[0]]
        _copy_bundle(manifests[fitting[0]], Path(home), Path(source), copy)
        add(copy, [adapter], against=opened)
        _copy_proof(copy, name, Path(proof, fitting[0]))


def _imported(folder: str, base: Base, name: str) -> Adapter:
    """Import an adapter; errors as of `import_peft`, or AdapterError without that plug-in."""
    module = public_calls().get(_IMPORT)
    if module is None:
        raise AdapterError("cannot be imported without the plug-in `formats`", where=f"adapter `{name}`")
    adapter: Adapter = getattr(importlib.import_module(module), _IMPORT)(folder, base, name=name)
    return adapter


def _copy_bundle(manifest: Manifest, home: Path, folder: Path, copy: Path) -> None:
    """Copy the bundle that is served, with hard links where the file system supports them.

    Files that the server reads come from its private copy, the others from the bundle's folder. `add` compares all of
    them with the manifest.
    """
    for path in (MANIFEST_FILE, *(file.path for file in manifest.files)):
        source = home / path if (home / path).is_file() else folder / path
        (copy / path).parent.mkdir(parents=True, exist_ok=True)
        try:
            os.link(source.resolve(), copy / path)
        except OSError:  # another file system, or a file of another user
            shutil.copy2(source, copy / path)


def _copy_proof(bundle: Path, name: str, proof: Path) -> None:
    """Copy the manifest, and the files of an adapter that loading it reads."""
    manifest = read_manifest(bundle)
    record = next(record for record in manifest.adapters if record.name == name)
    for path in (MANIFEST_FILE, record.onnx_adapter, *record.golden.files, *manifest.golden.files):
        (proof / path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(bundle / path, proof / path)

"""Layouts of a bundle for the platforms that serve models."""

from __future__ import annotations

import re
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from string import Template
from tempfile import TemporaryDirectory
from typing import Literal

import onnx_ir as ir

from adapter_export.bundle.write import BANK_FILE
from adapter_export.dtypes import widened
from adapter_export.errors import FormatError, UsageError, argument
from adapter_export.format.files import new_folder
from adapter_export.format.manifest import Manifest
from adapter_export.format.manifest_json import UNLISTED, open_whole, read_manifest, verify_files
from adapter_export.format.tensors import read_tensors
from adapter_export.layouts.triton import in_one, model_config, take_in_one
from adapter_export.onnx_backend.base.external import read_model
from adapter_export.reading.files import read_bytes
from adapter_export.version import __version__

Layout = Literal["triton", "kserve", "ray", "docker"]
"""A platform: NVIDIA Triton, KServe, Ray Serve, or any that runs containers."""

_FILES = Path(__file__).with_name("files")
_BUNDLE_AT = {"kserve": "storage/{name}", "ray": "bundle", "docker": "bundle"}
_NAME = r"[a-z]([-a-z0-9]{0,61}[a-z0-9])?"
"""What Kubernetes takes for the name of a service (RFC 1035), and the others for that of a model."""


@dataclass(frozen=True)
class Shipped:
    """A layout that was written.

    Attributes:
        folder: where it lies.
        layout: for which platform.
        name: of the service, or of the model.
        files: their paths in the folder, sorted; those of the bundle in it are left out.
    """

    folder: Path
    layout: Layout
    name: str
    files: tuple[str, ...]


def write_layout(bundle: Path, layout: Layout, folder: Path, *, name: str, force: bool) -> Shipped:
    """Write what a platform needs to serve a bundle, with a copy of the bundle, or of its graphs.

    Raises:
        UsageError: the name is none that all platforms take, or the bundle has no tokenizer, which Ray needs.
        FileError, FormatError: the bundle is damaged.
        OutputExistsError, WriteError: the folder cannot be written.
    """
    if not re.fullmatch(_NAME, name):
        raise UsageError(
            "is no name of a service",
            where=argument("name"),
            found=f"`{name}`",
            expected="lower-case letters, digits and `-`, a letter first, at most 63",
        )
    with new_folder(folder, force=force) as temporary:
        manifest = open_whole(bundle, partial(_copied, bundle, layout, temporary, name))
        words = {"name": name, "version": __version__, "minimum": manifest.minimum_onnxruntime, **_extras(manifest)}
        files = []
        for source in sorted((_FILES / layout).rglob("*")):
            if source.is_file() and source.suffix != ".pyc":
                path = source.relative_to(_FILES / layout)
                text = source.read_text("utf-8")
                place = temporary / path
                place.parent.mkdir(parents=True, exist_ok=True)
                place.write_text(text if path.suffix == ".py" else Template(text).substitute(words), encoding="utf-8")
                files.append(path.as_posix())
        written = (*(temporary / "model_repository").rglob("*.*"), *(temporary / "adapters").glob("*"))
        files += [path.relative_to(temporary).as_posix() for path in written]
    return Shipped(folder, layout, name, tuple(sorted(files)))


def _extras(manifest: Manifest) -> dict[str, str]:
    """Return what else is installed, for the runtime and for `adapter-export`: what reads pictures, and texts."""
    image = [] if manifest.media is None or manifest.media.medium != "image" else ["image"]
    runtime = [*image, *([] if manifest.text is None else ["text"])]
    return {"runtime": f"[{','.join(runtime)}]" if runtime else "", "serve": f"[{','.join([*image, 'serve'])}]"}


def _copied(bundle: Path, layout: Layout, folder: Path, name: str, manifest: Manifest) -> Manifest:
    """Copy what the layout has of a bundle: the bytes that are compared with their hashes are those of the copy."""
    if layout == "triton":
        _write_repository(bundle, folder / "model_repository", name, manifest)
        _write_adapters(bundle, folder / "adapters", manifest)
        return manifest
    if layout == "ray" and manifest.text is None:
        fix = f"give {argument('layout', 'docker')}, or build it again with {argument('tokenizer')}"
        raise UsageError("has no tokenizer, and the application for Ray reads texts", where=bundle, fix=fix)
    place = folder / _BUNDLE_AT[layout].format(name=name)
    _copy(bundle, manifest, [file.path for file in manifest.files], place)
    for path in UNLISTED:
        if (bundle / path).is_file():
            (place / path).write_bytes(read_bytes(bundle / path))
    if read_manifest(place) != manifest:  # then `open_whole` begins anew
        raise FormatError("was exchanged while it was copied", where=bundle, fix="try again")
    return manifest


def _write_repository(bundle: Path, folder: Path, name: str, manifest: Manifest) -> None:
    """Write a model for each way to choose adapters by a call: `slots` by an adapter's tensors, `bank` by row."""
    weights = [file.path for file in manifest.files if "/" not in file.path and file.path.endswith(".bin")]
    flavours: list[Literal["slots", "bank"]] = ["slots", "bank"] if "bank" in manifest.graphs else ["slots"]
    for flavour in flavours:
        model = name if flavour == "slots" else f"{name}-{flavour}"
        needed = [file for file in weights if flavour == "bank" or file != BANK_FILE]
        graph = manifest.graphs[flavour]
        _copy(bundle, manifest, [graph, *needed], folder / model / "1")
        if flavour == "slots":
            _take_in_one(folder / model / "1" / graph, manifest, bundle / graph)
        (folder / model / "config.pbtxt").write_text(model_config(manifest, flavour, model), encoding="utf-8")


def _take_in_one(path: Path, manifest: Manifest, where: Path) -> None:
    model = read_model(path, lambda reason: FormatError("is not an ONNX model", where=where, found=reason))
    take_in_one(model, manifest)
    ir.save(model, path)


def _write_adapters(bundle: Path, folder: Path, manifest: Manifest) -> None:
    """Write what a call sends to run an adapter: the bytes of float32 numbers, little-endian."""
    files = [record.safetensors for record in manifest.adapters]
    with TemporaryDirectory(dir=folder.parent) as copy:
        _copy(bundle, manifest, files, Path(copy) / "read")
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        for record in manifest.adapters:
            numbers = in_one(
                manifest, widened(read_tensors(Path(copy) / "read" / record.safetensors)), f"adapter `{record.name}`"
            )
            (folder / f"{record.name}.bin").write_bytes(numbers.astype("<f4").tobytes())


def _copy(bundle: Path, manifest: Manifest, paths: Sequence[str], folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)  # what was copied when the bundle was exchanged meanwhile
    for path in paths:
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
    verify_files(manifest, bundle, copied=paths, into=folder)

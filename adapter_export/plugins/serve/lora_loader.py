"""PEFT adapters for a running server: imported and proved by this package's commands, in processes of their own.

They take torch and the base's weights, which the server must neither load nor wait for.
"""

from __future__ import annotations

import asyncio
import logging
import os
import shutil
import sys
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from adapter_export.errors import AdapterError
from adapter_export.format.adapter_files import read_adapter
from adapter_export.format.manifest_json import MANIFEST_FILE, read_manifest
from adapter_export.graph.adapter import check_name
from adapter_export.plugins.serve.limits import RefusedError
from adapter_export.plugins.serve.models import LoadedAdapter
from adapter_export.plugins.serve.server_settings import MAX_ADAPTER_BYTES, ServerSettings
from adapter_export.plugins.serve.telemetry import log
from adapter_export.runtime import Bundle
from adapter_export.safe_io.documents import parse_json
from adapter_export.safe_io.regular_files import read_bytes
from adapter_export.safe_io.temporary import temporary_folder

LOAD_LORA = "load_lora"
"""The change that loads a PEFT adapter; proved, it becomes the change `load`."""

_CONFIG = "adapter_config.json"
_SECONDS = 1800.0
"""Time limit of a command."""

_BUG = "InternalError"
"""Name of the errors of commands that are bugs."""


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
            RefusedError: 403, the folder is not below the root; 404, it has no adapter; 400, the adapter is refused,
                with the error of the command; 503, a command takes too long.
            AdapterError: the name is invalid, or no bundle has the adapter's base.
        """
        check_name(name)
        folder = self._checked(path)
        async with self._proving:
            with temporary_folder() as work:
                imported, copy = work / name, work / "bundle"
                await _run("import", "peft", folder, "--base", self._base, "--name", name, "-o", imported)
                bundle = await asyncio.to_thread(_bundle_of, imported, bundles)
                await asyncio.to_thread(_copy_bundle, bundles[bundle], copy)
                await _run("add", copy, imported, "--against", self._base)
                proof = Path(tempfile.mkdtemp(dir=into))
                await asyncio.to_thread(_copy_proof, copy, name, proof)
        return {"name": name, "bundle": bundle, "proof": str(proof)}

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
    """Return a proved adapter with its golden data, from a folder that `LoraLoader.prove` wrote."""
    manifest = read_manifest(folder)
    record = next(record for record in manifest.adapters if record.name == name)
    data = read_bytes(folder / record.onnx_adapter, MAX_ADAPTER_BYTES)
    return LoadedAdapter(name, data, task=record.task, proof=Bundle(folder, manifest, verified=False))


def _bundle_of(folder: Path, bundles: Mapping[str, Bundle]) -> str:
    """Return the name of the first bundle that was built from an adapter's base."""
    adapter = read_adapter(folder)
    names = [name for name, bundle in bundles.items() if bundle.manifest.base == adapter.base]
    if not names:
        raise AdapterError(
            "was trained on a base that is not served",
            where=f"adapter `{adapter.name}`",
            found=adapter.base,
            expected=", ".join(sorted({bundle.manifest.base for bundle in bundles.values()})),
            fix="serve a bundle of its base",
        )
    return names[0]


def _copy_bundle(bundle: Bundle, copy: Path) -> None:
    """Copy the bundle that is served, with hard links where the file system supports them.

    Files that the server reads come from its private copy, the others from the bundle's folder. The command that
    changes the copy compares all of them with the manifest.
    """
    for path in (MANIFEST_FILE, *(file.path for file in bundle.manifest.files)):
        private = bundle.home / path
        source = private if private.is_file() else bundle.folder / path
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


async def _run(*arguments: object) -> None:
    """Run a command of this package; errors as of `LoraLoader.prove`."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    words = [sys.executable, "-P", "-m", "adapter_export", *map(str, arguments), "--json"]
    pipe, null = asyncio.subprocess.PIPE, asyncio.subprocess.DEVNULL
    process = await asyncio.create_subprocess_exec(*words, env=environment, stdin=null, stdout=pipe, stderr=pipe)
    try:
        async with asyncio.timeout(_SECONDS):
            output, errors = await process.communicate()
    except TimeoutError:
        raise RefusedError(503, f"`{arguments[0]}` took longer than {_SECONDS:g} seconds", again=60) from None
    finally:
        with suppress(ProcessLookupError):  # it has ended, unless the request or the server ends
            process.kill()
    if process.returncode:
        message = errors.decode(errors="replace").strip().splitlines()[-1:]
        facts = parse_json(output, "the output of a command") if output else None
        if not isinstance(facts, Mapping) or facts.get("error") == _BUG:
            log("lora", level=logging.ERROR, command=str(arguments[0]), error=errors.decode(errors="replace"))
            raise RefusedError(500, f"`{arguments[0]}` failed; the log of the server has its error")
        raise RefusedError(400, "".join(message).removeprefix("error: "))

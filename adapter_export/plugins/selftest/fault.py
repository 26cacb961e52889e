"""Kind of fault, and the copy of a bundle that it is planted in."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeVar

import numpy as np
import onnx_ir as ir

from adapter_export.bundle.bundle_reader import LEVEL, OpenedBundle
from adapter_export.dtypes import AdapterPrecision, Weights, narrowed, widened
from adapter_export.format.manifest import Manifest
from adapter_export.format.manifest_json import MANIFEST_FILE, write_manifest
from adapter_export.format.tensors import write_tensors
from adapter_export.runtime.adapter_file import write_adapter_file
from adapter_export.runtime.bundle import Bundle
from adapter_export.runtime.generation.decoding_batch import DecodingBatch
from adapter_export.runtime.graphs import Optimization
from adapter_export.runtime.session import Session

Area = Literal[
    "base weights",
    "base nodes",
    "shapes",
    "sites",
    "adapters",
    "bank",
    "inputs graph",
    "manifest",
    "texts",
    "batches",
    "golden data",
    "recorded runs",
    "generation",
]

Drawn = TypeVar("Drawn")

FILES = ("safetensors", "onnx_adapter")
"""The two tensor files of an adapter."""

Place = str
"""Name of a wrong tensor, node, slot, site, file or adapter."""


class _OnEngine(OpenedBundle):
    """A bundle whose sessions generate with another engine."""

    batch_type = DecodingBatch

    def runtime_session(
        self, level: Optimization = LEVEL, only: Collection[str] | None = None, *, checksums: bool = False
    ) -> Session:
        session = super().runtime_session(level, only, checksums=checksums)
        if self.manifest.generation is not None:
            session.decoder.batch_type = self.batch_type
        return session


class Copy:
    """Copy of a bundle in another folder, for planting faults one after the other.

    `rng` chooses where. `batch_type` is the engine that generates texts.
    """

    def __init__(self, bundle: OpenedBundle, folder: Path) -> None:
        self._bundle, self.folder = bundle, folder
        self.manifest, self.changed, self.rng = bundle.manifest, set[str](), np.random.default_rng()
        self.batch_type = DecodingBatch
        shutil.copytree(bundle.home, folder, copy_function=shutil.copyfile, dirs_exist_ok=True)

    def renew(self, seed: int) -> None:
        """Revert all changes, and seed the random generator."""
        for path in self.changed:
            whole, here = self._bundle.home / path, self.folder / path
            if whole.is_dir():
                shutil.rmtree(here)
                shutil.copytree(whole, here)
            else:
                shutil.copyfile(whole, here)
        self.manifest, self.changed, self.rng = self._bundle.manifest, set[str](), np.random.default_rng(seed)
        self.batch_type = DecodingBatch

    def change(self, path: str) -> Path:
        """Return the path of a file that is about to be rewritten."""
        self.changed.add(path)
        return self.folder / path

    def opened(self) -> OpenedBundle:
        """Open the copy for a check without comparing hashes, as if the author of the fault had updated them."""
        bundle = _OnEngine(Bundle(self.folder, self.manifest, verified=False))
        bundle.batch_type = self.batch_type
        return bundle

    def graph(self, variant: str = "slots") -> ir.Model | None:
        """Return a graph; `None` if the bundle lacks the variant."""
        path = self.manifest.graphs.get(variant)
        return None if path is None else ir.load(self.folder / path)

    def keep(self, model: ir.Model, variant: str = "slots") -> None:
        """Write a changed graph."""
        self.change(self.manifest.graphs[variant]).write_bytes(ir.to_proto(model).SerializeToString())

    def claim(self, manifest: Manifest) -> None:
        """Write a changed manifest."""
        self.manifest = manifest
        self.change(MANIFEST_FILE).unlink()
        write_manifest(manifest, self.folder)

    def fill(
        self, name: str, tensors: Weights, files: Sequence[str] = FILES, precision: AdapterPrecision = "float32"
    ) -> None:
        """Write the tensors of an adapter to both of its files, or one of them, rounded to a precision."""
        stored = narrowed(tensors, precision)
        tensors = widened(stored)
        record = next(entry for entry in self.manifest.adapters if entry.name == name)
        for kind in files:
            path = self.change(record.safetensors if kind == "safetensors" else record.onnx_adapter)
            path.unlink()
            if kind == "safetensors":
                write_tensors(path, stored)
            else:
                write_adapter_file(path, tensors, self.manifest.model_version, precision)

    def choose(self, candidates: Sequence[Drawn]) -> Drawn | None:
        """Return a random candidate; `None` if there are no candidates."""
        return candidates[int(self.rng.integers(len(candidates)))] if candidates else None


@dataclass(frozen=True)
class Fault:
    """Kind of fault.

    `plant` changes a copy and returns the names of the wrong parts, each of which locates the fault; `None` if it does
    not apply to the bundle.
    """

    name: str
    area: Area
    plant: Plant


Plant = Callable[[Copy], Sequence[Place] | None]


def kinds_of(area: Area, plants: Mapping[str, Plant]) -> tuple[Fault, ...]:
    """Return the faults of an area, from functions that plant them, by name."""
    return tuple(Fault(name, area, plant) for name, plant in plants.items())


def in_graph(change: Callable[[Copy, ir.Model], Sequence[Place] | None], variant: str = "slots") -> Plant:
    """Change a graph, and write it if the change applies."""

    def plant(copy: Copy) -> Sequence[Place] | None:
        model = copy.graph(variant)
        places = None if model is None else change(copy, model)
        if model is not None and places is not None:
            copy.keep(model, variant)
        return places

    return plant

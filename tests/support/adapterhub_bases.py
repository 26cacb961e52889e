"""The fixtures that AdapterHub's library wrote, and the bases that they were made for, in every form.

`tests/fixtures/adapterhub/make.py` made them and describes them.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from captured import captured
from float64_bases import Base
from kept import kept
from packed import unpacked
from safetensors.numpy import load_file

from adapter_export.bases.base_view import BaseView, ImportRequest
from adapter_export.numerics.merged_layers import Layer
from adapter_export.onnx_backend.base.onnx_base import OnnxBase, open_onnx
from adapter_export.plugins.formats.importers import adapterhub
from adapter_export.plugins.formats.importers.tensor_map import Imported
from adapter_export.sites.discover import discover
from adapter_export.sites.site import Site, SiteMap
from adapter_export.torch_backend.base.huggingface_folder import capture_folder
from adapter_export.torch_backend.base.pickles import read_torch_file
from adapter_export.torch_backend.base.to_onnx import export_onnx
from adapter_export.torch_backend.base.torch_base import TorchBase, load_base
from adapter_export.torch_backend.fx_view import flow_graph
from adapter_export.torch_backend.torch_runner import TorchRunner

FIXTURES = unpacked("adapterhub")

_ARCHIVED = ("bert", "roberta")
"""The bases of which commands are given an archive."""


@dataclass(frozen=True)
class Made:
    """A base in every form, each opened when it is first asked for.

    Attributes:
        folder: what the library wrote.
        made: a folder with `model.onnx`, and of some bases `model.pt`.
    """

    folder: Path
    made: Path

    @cached_property
    def inputs(self) -> dict[str, np.ndarray]:
        """Token types are left out of the files: they are zero."""
        given = load_file(self.folder / "inputs.safetensors")
        names = [record.name for record in self.source.inputs]
        return {name: given.get(name, np.zeros_like(given[next(iter(given))])) for name in names}

    @cached_property
    def source(self) -> TorchBase:
        archive = self.made / "model.pt"
        return load_base(archive) if archive.exists() else captured(self.folder / "model")

    @cached_property
    def sites(self) -> SiteMap:
        return discover(flow_graph(self.source.flat))

    @cached_property
    def torch(self) -> TorchRunner:
        return TorchRunner(self.source, sites=self.sites)

    @cached_property
    def onnx(self) -> OnnxBase:
        return open_onnx(self.made / "model.onnx")

    @cached_property
    def float64(self) -> Base:
        return Base.read(self.folder / "model")


def adapterhub_base(factory: pytest.TempPathFactory, name: str) -> Made:
    """A base by its name."""
    return Made(FIXTURES / name, kept(factory, f"adapterhub_{name}", _write, FIXTURES / name))


def _write(folder: Path, source: Path) -> None:
    if source.name in _ARCHIVED:
        capture_folder(source / "model", folder / "model.pt")
    export_onnx(Made(source, folder).source, folder / "model.onnx")


def import_adapterhub(
    folder: Path,
    sites: SiteMap,
    *,
    name: str,
    base: str,
    model_type: str | None = None,
    with_head: bool = True,
    **options: Any,
) -> Imported:
    """As the library does it where torch is there to read pickled tensors, with the weights of the fixture's base."""
    weights = FIXTURES / folder.parent.name / "model" / "model.safetensors"

    def layer_at(site: Site) -> Layer | None:
        weight = load_file(weights).get(f"{site.path}.weight") if weights.exists() else None
        return None if weight is None else Layer((f"{site.path}.weight", ""), weight, None, module_in_first=False)

    view = BaseView(base, sites, model_type, layer_at=layer_at)
    request = ImportRequest(name, **{"read_pickle": read_torch_file, **options})
    return adapterhub.import_adapterhub(folder, view, request, with_head=with_head)

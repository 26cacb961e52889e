"""The folders that PEFT wrote (`tests/fixtures/peft`), copies of them with something changed, and sites for them."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from hand_made_sites import BERT, encoder, site
from packed import unpacked
from safetensors.numpy import load_file, save_file

from adapter_export.bases.base_view import BaseView, HeadOf, ImportRequest
from adapter_export.numerics.merged_layers import Layer
from adapter_export.plugins.formats.importers import peft
from adapter_export.plugins.formats.importers.peft.head import HeadChoice
from adapter_export.plugins.formats.importers.tensor_map import Imported
from adapter_export.sites.site import Site, SiteMap
from adapter_export.torch_backend.base.pickles import read_torch_file

FIXTURES = unpacked("peft")
CONFIG, TENSORS = "adapter_config.json", "adapter_model.safetensors"
CASES = tuple(sorted(path.name for path in (FIXTURES / "adapters").iterdir()))

Arrays = dict[str, np.ndarray]


def adapter_folder(name: str) -> Path:
    """Return the folder with the files of an adapter: a subfolder unless the name is PEFT's default."""
    (config,) = (FIXTURES / "adapters" / name).rglob(CONFIG)
    return config.parent


def refused_folder(name: str) -> Path:
    return FIXTURES / "refused" / name


def base_folder(name: str) -> Path:
    """The base of an adapter."""
    return FIXTURES / "bases" / read_config(adapter_folder(name))["base_model_name_or_path"]


def read_config(folder: Path) -> dict[str, Any]:
    config: dict[str, Any] = json.loads((folder / CONFIG).read_text())
    return config


def expected(name: str) -> Arrays:
    """Inputs, outputs and what some layers read and returned, by the names that `make.py` explains."""
    (path,) = (FIXTURES / "adapters" / name).rglob("expected.safetensors")
    return load_file(path)


def import_peft(
    folder: Path,
    sites: SiteMap,
    *,
    name: str,
    base: str,
    base_tensor: Callable[[str], np.ndarray | None] = lambda _: None,
    layer_at: Callable[[Site], Layer | None] | None = None,
    model_type: str | None = None,
    head_of: HeadOf = lambda *_: None,
    head: HeadChoice | None = None,
    dense: bool = True,
    **options: Any,
) -> Imported:
    """As the library does it where torch is there to read pickled tensors; the layers are `Linear` by default."""
    view = BaseView(base, sites, model_type, base_tensor, layer_at or named_layers(base_tensor), head_of)
    request = ImportRequest(name, **{"read_pickle": read_torch_file, **options})
    return peft.import_peft(folder, view, request, head=head, dense=dense)


def named_layers(
    tensor: Callable[[str], np.ndarray | None], *, in_first: bool = False
) -> Callable[[Site], Layer | None]:
    """Return a finder of layers by module path; with `in_first`, they are `Conv1D` of transformers."""

    def layer_at(site: Site) -> Layer | None:
        weight, bias = (tensor(f"{site.path}.{name}") for name in ("weight", "bias"))
        if weight is None:
            return None
        return Layer((f"{site.path}.weight", f"{site.path}.bias"), weight.T if in_first else weight, bias)

    return layer_at


def changed(
    folder: Path,
    to: Path,
    *,
    config: Mapping[str, Any] | None = None,
    tensors: Callable[[Arrays], Arrays] | None = None,
) -> Path:
    """A copy of an adapter's folder with other values in its config, and other tensors."""
    shutil.copytree(folder, to)
    (to / CONFIG).write_text(json.dumps(read_config(folder) | dict(config or {})))
    if tensors is not None:
        save_file(tensors(load_file(to / TENSORS)), to / TENSORS)
    return to


def bare_bert() -> tuple[SiteMap, Arrays]:
    """The linear sites of the small BERT by a person's list, and its tensors; no graph is behind them."""
    sites = encoder(2, 32, 48, BERT)
    tensors = load_file(FIXTURES / "bases" / "bert" / "model.safetensors")
    return replace(sites, sites=tuple(sites.of_roles(("linear",)))), tensors


def linear_site(name: str, path: str | None, width_in: int, width: int) -> Site:
    return site(name, "linear", int(name.split(".")[1]), width, width_in, path)

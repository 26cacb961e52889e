"""Export of LoRA to GGUF for llama.cpp, with tensor names and row order of the base's GGUF file."""

from __future__ import annotations

import importlib
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from adapter_export.errors import FormatError, MissingExtraError, UsageError
from adapter_export.graph.adapter import Adapter, Placement
from adapter_export.graph.graph import AdapterGraph
from adapter_export.graph.kinds.linear import lora_graph
from adapter_export.plugins.formats.exporters.export_format import (
    ExportFormat,
    ExportRequest,
    Written,
    check_places,
    module_path,
)
from adapter_export.plugins.formats.exporters.recognise import factor_of, ops_of, parameters_alike
from adapter_export.safe_io.parsers import parsing
from adapter_export.sites.site import Site
from adapter_export.words import argument

_UNLIKE = 0.5
"""Relative difference above which weights count as different: rounding to 2 bits stays below a third, and permuted rows
differ by about √2."""

_LORA_A, _LORA_B = ".lora_a", ".lora_b"


class GgufFormat(ExportFormat):
    """A file for llama.cpp's `--lora`."""

    name = "gguf"
    library = "llama.cpp"
    is_folder = False
    allowed = 1e-6  # `adapter.lora.alpha` is a float32, which rounds at 6e-8

    def write(self, request: ExportRequest, path: Path) -> Written:
        """Write the file; `request.base_file` is the base in GGUF."""
        check_places(request, self.library)
        if request.adapter.head is not None:
            raise self.refusal(
                "it has no heads", where="head", found="a head", fix="give " + argument("without_head", True)
            )
        factors = {site.name: self._factor(request, site, graph) for site, graph in request.placed()}
        if not factors:
            raise self.refusal("it has no adapter without layers", where=request.adapter.name, found="no site")
        base, gguf = _Base.of(request, self), _gguf()
        places = {site.name: base.place(request, site, self) for site, _ in request.placed()}
        matrices = {site.name: self._matrices(request, site, graph) for site, graph in request.placed()}
        alphas = Counter(factors[name] * len(down) for name, (down, _) in matrices.items() if factors[name])
        # the most common, so that few matrices are multiplied by a factor
        alpha = alphas.most_common(1)[0][0] if alphas else 1.0
        writer = gguf.GGUFWriter(str(path), base.architecture)
        writer.add_type("adapter")
        writer.add_string(gguf.Keys.Adapter.TYPE, "lora")
        writer.add_float32(gguf.Keys.Adapter.LORA_ALPHA, alpha)
        folded = False
        for name, (down, up) in matrices.items():
            place, ratio = places[name], factors[name] * len(down) / alpha
            folded |= ratio != 1
            rows = up if ratio == 1 else (up.astype(np.float64) * ratio).astype(np.float32)
            writer.add_tensor(f"{place.tensor}{_LORA_A}", np.ascontiguousarray(down))
            writer.add_tensor(f"{place.tensor}{_LORA_B}", np.ascontiguousarray(rows[place.order]))
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        notes = ["the file has one alpha: other factors are multiplied into `lora_b`"] if folded else []
        return Written("LORA", [place.tensor for place in places.values()], 2 * len(places), notes)

    def read_back(self, request: ExportRequest, path: Path) -> Adapter:
        """Read the file like llama.cpp: the factor is `adapter.lora.alpha` over the rank of `lora_b`."""
        base, adapter = _Base.of(request, self), request.adapter
        stored, alpha = _tensors(path), float(_value(_read(path), _gguf().Keys.Adapter.LORA_ALPHA))
        graphs, placements = dict[str, AdapterGraph](), dict[str, Placement]()
        weights: dict[str, np.ndarray] = {}
        for site, _ in request.placed():
            place = base.place(request, site, self)
            down, up = stored[f"{place.tensor}{_LORA_A}"], np.empty_like(stored[f"{place.tensor}{_LORA_B}"])
            up[place.order] = stored[f"{place.tensor}{_LORA_B}"]
            factor = alpha / len(down)
            graphs[f"lora_{factor}"] = lora_graph(factor)
            widths = {"d": len(up), "d_in": down.shape[1], "r": len(down)}
            placements[site.name] = Placement(f"lora_{factor}", widths)
            weights |= {f"{site.name}.lora_A.weight": down.T, f"{site.name}.lora_B.weight": up.T}
        return Adapter(adapter.name, "lora", adapter.base, graphs, placements, weights)

    def _factor(self, request: ExportRequest, site: Site, graph: AdapterGraph) -> float:
        """Return the factor of LoRA at a layer; AdapterError unless the graph is a LoRA without bias."""
        factor = factor_of(graph)
        if site.role == "linear" and parameters_alike(graph, lora_graph(factor)) is not None:
            return factor
        raise self.refusal(
            "its adapters are `h + s·B(A u)` (LoRA) at linear layers",
            where=f"site `{site.name}`",
            found=f"{request.adapter.kind}: {ops_of(graph)}",
        )

    def _matrices(self, request: ExportRequest, site: Site, graph: AdapterGraph) -> tuple[np.ndarray, np.ndarray]:
        """Return A [r, in] and B [out, r]."""
        names, owned = parameters_alike(graph, lora_graph(factor_of(graph))), request.adapter.parameters(site.name)
        assert names is not None, "`_factor` accepted the graph"
        return owned[names["lora_A.weight"]].T, owned[names["lora_B.weight"]].T


GGUF = GgufFormat()


@dataclass(frozen=True)
class _Place:
    """A tensor of the base changed by an adapter, and the order of its rows."""

    tensor: str
    order: np.ndarray


@dataclass(frozen=True)
class _Base:
    """A base in GGUF: architecture in llama.cpp, numbers of heads, tensors, and map of tensor names."""

    architecture: str
    heads: tuple[int, ...]
    tensors: Mapping[str, Any]
    names: Any
    where: Path

    @classmethod
    def of(cls, request: ExportRequest, target: ExportFormat) -> _Base:
        """Read the base's file.

        Raises:
            UsageError: no file is given.
            FormatError: the file is not a GGUF model.
            AdapterError: the package `gguf` does not support the architecture.
        """
        gguf, file = _gguf(), request.base_file
        if file is None:
            raise UsageError(
                "llama.cpp permutes the rows of some weights, which only the base's GGUF file shows",
                fix="pass the base in GGUF with " + argument("gguf_base", words="FILE"),
            )
        reader = _read(file)
        architecture = str(_value(reader, gguf.Keys.General.ARCHITECTURE))
        known = {name: kind for kind, name in gguf.MODEL_ARCH_NAMES.items()}
        if architecture not in known:
            raise target.refusal("its architecture has no map of tensor names", where=file, found=f"`{architecture}`")
        blocks = int(_value(reader, f"{architecture}.block_count"))
        counts = (reader.get_field(f"{architecture}.attention.{key}") for key in ("head_count", "head_count_kv"))
        heads = tuple(int(np.ravel(field.contents())[0]) for field in counts if field is not None)
        tensors = {tensor.name: tensor for tensor in reader.tensors}
        return cls(architecture, heads, tensors, gguf.get_tensor_name_map(known[architecture], blocks), file)

    def place(self, request: ExportRequest, site: Site, target: ExportFormat) -> _Place:
        """Return the tensor of a layer and the order of its rows, found by comparing the weights of both files."""
        path = module_path(site, target.library)
        name = f"{self.names.get_name(path)}.weight"
        tensor, weight = self.tensors.get(name), request.base.weight_at(site)
        if tensor is None or weight is None:
            missing = (
                "no weights of the base" if tensor is not None else f"no tensor for `{path}` in `{self.where.name}`"
            )
            raise target.refusal(
                "a layer cannot be found in both files of the base",
                where=f"site `{site.name}`",
                found=missing,
                fix="pass one model with "
                + argument("base", words="MODEL")
                + " and "
                + argument("gguf_base", words="FILE"),
            )
        gguf = _gguf()
        with parsing(partial(_no_gguf, self.where)):
            stored = np.asarray(gguf.dequantize(tensor.data, tensor.tensor_type), np.float64)
        orders = [np.arange(len(weight)), *(_interleaved(len(weight), heads) for heads in self.heads)]
        wanted = weight.astype(np.float64)
        if stored.shape == wanted.shape:
            differences = [float(np.linalg.norm(wanted[order] - stored) / np.linalg.norm(wanted)) for order in orders]
            best = int(np.argmin(differences))
            if differences[best] < _UNLIKE:
                return _Place(name, orders[best])
        raise target.refusal(
            "the two files of the base have different weights",
            where=f"`{name}`",
            found=f"{list(stored.shape)}"
            if stored.shape != wanted.shape
            else f"a difference of {min(differences):.2f}",
            fix="pass the GGUF file converted from the base",
        )


def _interleaved(rows: int, heads: int) -> np.ndarray:
    """Return the row order for rotary embeddings in adjacent pairs (`LlamaModel.permute` of llama.cpp)."""
    if heads < 1 or rows % (2 * heads):
        return np.arange(rows)
    return np.arange(rows).reshape(heads, 2, -1).swapaxes(1, 2).reshape(-1)


def _gguf() -> Any:
    try:
        return importlib.import_module("gguf")
    except ModuleNotFoundError as error:
        if error.name != "gguf":
            raise
        raise MissingExtraError("gguf", extra="gguf", needed_for="writing adapters for llama.cpp") from error


def _read(file: Path) -> Any:
    with parsing(partial(_no_gguf, file)):
        return _gguf().GGUFReader(str(file))


def _tensors(file: Path) -> dict[str, np.ndarray]:
    return {tensor.name: np.array(tensor.data, np.float32) for tensor in _read(file).tensors}


def _value(reader: Any, key: str) -> Any:
    field = reader.get_field(key)
    if field is None:
        raise FormatError("is not a GGUF file of a model or an adapter", found=f"no `{key}`")
    return field.contents()


def _no_gguf(file: Path, reason: str) -> FormatError:
    return FormatError("is not a readable GGUF file", where=file, found=reason)

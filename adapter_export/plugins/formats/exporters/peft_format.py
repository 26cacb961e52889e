"""Export to PEFT: LoRA and IA3 at linear layers, with a head in `modules_to_save`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np

from adapter_export.bases.base_view import ImportRequest
from adapter_export.format.files import canonical_json
from adapter_export.format.tensors import write_tensors
from adapter_export.graph.adapter import Adapter
from adapter_export.graph.graph import AdapterGraph
from adapter_export.graph.kinds.linear import changed_layer_graph, ia3_graph, lora_graph
from adapter_export.plugins.formats.exporters.export_format import (
    ExportFormat,
    ExportRequest,
    Written,
    check_places,
    module_path,
)
from adapter_export.plugins.formats.exporters.peft_head import SavedHead, saved_head
from adapter_export.plugins.formats.exporters.recognise import dropout_of, factor_of, ops_of, parameters_alike
from adapter_export.plugins.formats.importers.peft import import_peft
from adapter_export.plugins.formats.importers.peft.methods import IA3, LORA
from adapter_export.plugins.formats.importers.peft.peft_folder import CONFIG_FILE, TENSOR_FILES
from adapter_export.plugins.formats.importers.peft.peft_options import CHECKED_WITH
from adapter_export.plugins.formats.importers.tensor_map import Recipes, library_tensors
from adapter_export.sites.site import SUBLAYERS, Site

_ROOT = "base_model.model."


@dataclass(frozen=True)
class _Module:
    """An adapted module: path in PEFT's model, tensors by PEFT's names, and numbers for the config.

    `scales_input` belongs to IA3; `rank`, `factor` and `dropout` to LoRA.
    """

    path: str
    peft_type: str
    tensors: Mapping[str, np.ndarray]
    rank: int = 1
    factor: float = 1.0
    dropout: float = 0.0
    scales_input: bool = False

    @property
    def alpha(self) -> float:
        """`lora_alpha` for the factor `lora_alpha / r`: PEFT has no separate factor."""
        alpha = self.factor * self.rank
        return int(alpha) if alpha == int(alpha) else alpha


class PeftFormat(ExportFormat):
    """A folder in the format of PEFT's `save_pretrained`."""

    name = "peft"
    library = "PEFT"

    def write(self, request: ExportRequest, path: Path) -> Written:
        """Write `adapter_config.json` and `adapter_model.safetensors`."""
        check_places(request, self.library)
        head = saved_head(request, self)
        modules = {module.path: module for module in self._modules(request, head)}
        forms = sorted({module.peft_type for module in modules.values()})
        if len(forms) != 1:
            raise self.refusal(
                "a PEFT adapter has one type",
                where=f"adapter `{request.adapter.name}`",
                found=" and ".join(forms) or "only a head",
            )
        (form,) = forms
        chosen = list(modules.values())
        config = _shared_config(request, form, head)
        linears = [head.path(site.path) for site in request.base.sites.of_roles(("linear",)) if site.path is not None]
        known = linears if request.all_layers else None
        config |= _lora_config(chosen, known) if form == "LORA" else _ia3_config(chosen, known)
        tensors = {
            f"{_ROOT}{module.path}.{name}": tensor for module in chosen for name, tensor in module.tensors.items()
        }
        tensors |= {f"{_ROOT}{name}": tensor for name, tensor in head.tensors.items()}
        write_tensors(path / TENSOR_FILES[0], tensors)
        (path / CONFIG_FILE).write_bytes(canonical_json(config))
        return Written(form, tuple(modules), len(tensors), loads_as=head.loads_as)

    def read_back(self, request: ExportRequest, path: Path) -> Adapter:
        """Import the folder."""
        import_request = ImportRequest(request.adapter.name)
        return import_peft(path, request.base, import_request, head=saved_head(request, self).choice).adapter

    def _modules(self, request: ExportRequest, head: SavedHead) -> Sequence[_Module]:
        biased = any("lora_B.bias" in graph.parameters for _, graph in request.placed())
        modules = []
        for site, graph in request.placed():
            module = self._module(request.adapter, site, graph)
            if biased and module.peft_type == "LORA" and "lora_B.bias" not in module.tensors:
                tensors = {**module.tensors, "lora_B.bias": np.zeros(site.width, np.float32)}
                module = replace(module, tensors=tensors)
            modules.append(replace(module, path=head.path(module.path)))
        return modules

    def _module(self, adapter: Adapter, site: Site, graph: AdapterGraph) -> _Module:
        """Return the module of a site; AdapterError if PEFT lacks the graph's formula."""
        if site.role == "linear":
            path, owned, factor = module_path(site, self.library), adapter.parameters(site.name), factor_of(graph)
            for bias in (False, True):
                tensors = _tensors(graph, lora_graph(factor, bias=bias), LORA, owned, site)
                if tensors is not None:
                    rank = len(tensors["lora_A.weight"])
                    return _Module(path, "LORA", tensors, rank, factor, dropout_of(graph))
            for value, recipes in IA3.items():
                tensors = _tensors(graph, ia3_graph(value), recipes, owned, site)
                if tensors is not None:
                    return _Module(path, "IA3", tensors, scales_input=value == "u")
        raise self.refusal(_reason(site, graph), where=f"site `{site.name}`", found=f"{adapter.kind}: {ops_of(graph)}")


PEFT = PeftFormat()


def _shared_config(request: ExportRequest, form: str, head: SavedHead) -> dict[str, Any]:
    imported = request.imported.get("config", {})
    return {
        "peft_type": form,
        "peft_version": f"{CHECKED_WITH}.0",
        "fan_in_fan_out": bool(imported.get("fan_in_fan_out", False)),
        "base_model_name_or_path": request.base_name or imported.get("base_model_name_or_path"),
        "task_type": head.task_type,
        "inference_mode": True,
        "modules_to_save": list(head.saved) or None,
    }


def _tensors(
    graph: AdapterGraph, wanted: AdapterGraph, recipes: Recipes, owned: Mapping[str, np.ndarray], site: Site
) -> dict[str, np.ndarray] | None:
    """Return PEFT's tensors if the graph is equivalent to `wanted`."""
    names = parameters_alike(graph, wanted)
    if names is None:
        return None
    parameters = {name: owned[parameter] for name, parameter in names.items()}
    widths = {"d": site.width, "d_in": site.width_in, "r": len(parameters.get("lora_B.weight", ()))}
    tensors = library_tensors(recipes, parameters, widths)
    return None if tensors is None else {source.tensor: tensor for source, tensor in tensors.items()}


def _reason(site: Site, graph: AdapterGraph) -> str:
    if site.role in (*SUBLAYERS, "embeddings"):
        return "it changes single linear layers, and this acts on the output of a sublayer or the embeddings"
    if site.role == "lookup" or "scatter" in {node.op for node in graph.nodes}:
        return "changed embeddings are imported from PEFT, but not written for it"
    if site.role == "part":
        return "it adapts a fused layer as a whole, and this acts on a part of one"
    for scale, bias in product((False, True), (False, True)):
        if parameters_alike(graph, changed_layer_graph(scale=scale, dense=True, bias=bias)) is not None:
            return "its files cannot contain a full-rank change, as large as the layer"
    return "it is neither `h + s·B(A u)` (LoRA) nor `l⊙h` or `l⊙u` (IA3)"


def _targets(paths: Sequence[str], linears: Sequence[str] | None) -> list[str]:
    """Return the shortest path suffixes that select these modules and no other linear layer.

    Returns whole paths if not all linear layers are known.
    """
    if linears is None:
        return list(paths)
    others = [f".{path}" for path in set(linears) - set(paths)]
    fitting_paths = dict[str, None]()
    for path in paths:
        names = path.split(".")
        ends = (".".join(names[-count:]) for count in range(1, len(names)) if not names[-count].isdecimal())
        fits = (end for end in ends if not any(other.endswith(f".{end}") for other in others))
        fitting_paths[next(fits, path)] = None
    return list(fitting_paths)


def _lora_config(modules: Sequence[_Module], linears: Sequence[str] | None) -> dict[str, Any]:
    """Return LoRA's keys: the most common rank and alpha, and patterns for modules with others."""
    rank = Counter(module.rank for module in modules).most_common(1)[0][0]
    alpha = Counter(module.alpha for module in modules).most_common(1)[0][0]
    return {
        "target_modules": _targets([module.path for module in modules], linears),
        "r": rank,
        "lora_alpha": alpha,
        "rank_pattern": {module.path: module.rank for module in modules if module.rank != rank},
        "alpha_pattern": {module.path: module.alpha for module in modules if module.alpha != alpha},
        "lora_dropout": max(module.dropout for module in modules),
        "lora_bias": any("lora_B.bias" in module.tensors for module in modules),
        "use_rslora": False,
        "use_dora": False,
        "bias": "none",
        "init_lora_weights": True,
    }


def _ia3_config(modules: Sequence[_Module], linears: Sequence[str] | None) -> dict[str, Any]:
    """Return IA3's keys; modules whose input is scaled are named in both lists."""
    scaled = [module.path for module in modules if module.scales_input]
    others = [module.path for module in modules if not module.scales_input]
    inputs, outputs = _targets(scaled, linears), _targets(others, linears)
    if any(path.endswith(end) for path in others for end in inputs):  # PEFT compares path suffixes here
        inputs = scaled
    return {"target_modules": [*outputs, *inputs], "feedforward_modules": inputs}

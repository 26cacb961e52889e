"""Export to AdapterHub: bottlenecks, invertible adapters, LoRA and IA3, with prediction heads."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np

from adapter_export.bases.base_view import ImportRequest
from adapter_export.errors import AdapterError, FormatError, UsageError
from adapter_export.format.files import canonical_json
from adapter_export.format.tensors import write_tensors
from adapter_export.graph.adapter import Adapter
from adapter_export.graph.graph import AdapterGraph
from adapter_export.graph.kinds.bottleneck_config import BottleneckConfig
from adapter_export.graph.kinds.linear import lora_graph
from adapter_export.plugins.formats.exporters.adapterhub_head import saved_head
from adapter_export.plugins.formats.exporters.export_format import (
    ExportFormat,
    ExportRequest,
    Written,
    check_activation,
    check_places,
    module_path,
)
from adapter_export.plugins.formats.exporters.recognise import (
    dropout_of,
    factor_of,
    ops_of,
    parameters_alike,
    transformers_activation,
)
from adapter_export.plugins.formats.importers.adapterhub import import_adapterhub
from adapter_export.plugins.formats.importers.adapterhub.adapterhub_config import LoraConfig, Method, read_config
from adapter_export.plugins.formats.importers.adapterhub.adapterhub_folder import (
    CONTAINERS_BEHIND,
    MODULES_BEHIND,
    sublayer_target,
)
from adapter_export.plugins.formats.importers.adapterhub.methods import (
    EMBEDDINGS,
    as_kind,
    bottleneck_recipes,
    bottleneck_widths,
    low_rank_form,
    nice_recipes,
)
from adapter_export.plugins.formats.importers.match import Target, inside, match
from adapter_export.plugins.formats.importers.tensor_map import Source, library_tensors
from adapter_export.sites.site import LAYERS, SUBLAYERS, Site
from adapter_export.words import argument

VERSION = "adapters.1.3.0"
"""Library version of the written format."""

_LETTERS = {"query": "q", "key": "k", "value": "v"}

TensorsBySite = dict[str, dict[Source, np.ndarray]]
"""Tensors of the library by site name."""


@dataclass(frozen=True)
class _Part:
    """A method of the library with its tensors; `container` is the library's name of their modules."""

    config: Method
    container: str
    tensors: TensorsBySite


class AdapterHubFormat(ExportFormat):
    """A folder in the format of `save_adapter` of the library `adapters`."""

    name = "adapterhub"
    library = "AdapterHub"
    names_class = True

    def write(self, request: ExportRequest, path: Path) -> Written:
        """Write `adapter_config.json` and `adapter.safetensors`, and the two files of a head."""
        check_places(request, self.library)
        sites = list(request.placed())
        wrong = next((site for site, _ in sites if site.role == "part"), None)
        if wrong is not None:
            raise self.refusal(
                "it adapts a fused layer as a whole, and this acts on a part of one",
                where=f"site `{wrong.name}`",
                found=request.adapter.kind,
            )
        if not sites:
            raise self.refusal("it has no head without an adapter", where=request.adapter.name, found="only a head")
        for site, graph in sites:
            check_activation(self, graph, f"site `{site.name}`")
        head = saved_head(request, self)
        layers = {site.name for site, _ in sites if site.role in LAYERS}
        others = {site.name for site, _ in sites} - layers
        parts = [self._bottleneck(request, others)] if others else []
        parts += [self._low_rank(request, layers)] if layers else []
        name, names = _name(request), _Names(request)
        tensors = {
            full: tensor
            for part in parts
            for site, _ in sites
            for source, tensor in part.tensors.get(site.name, {}).items()
            for full in [names.tensor(site, part.container, name, source)]
        }
        configs = [_document(part.config) for part in parts]
        facts = {
            "hidden_size": request.base.sites.width,
            "model_class": names.model_class,
            "model_name": request.base_name or request.imported_from.get("model_name") or "",
            "model_type": request.base.model_type or request.imported_from.get("model_type") or "",
            "name": name,
            "version": VERSION,
        }
        config = configs[0] if len(configs) == 1 else {"architecture": "union", "configs": configs}
        write_tensors(path / "adapter.safetensors", tensors)
        (path / "adapter_config.json").write_bytes(canonical_json({"config": config, **facts}))
        if head is not None:
            head_tensors = {f"heads.{name}.{source.tensor}": tensor for source, tensor in head.tensors.items()}
            write_tensors(path / "model_head.safetensors", head_tensors)
            (path / "head_config.json").write_bytes(canonical_json({"config": head.config, **facts}))
            tensors |= head_tensors
        form = " and ".join(
            "bottleneck" if isinstance(part.config, BottleneckConfig) else part.config.kind for part in parts
        )
        notes = [] if name == request.adapter.name else [f"the adapter is named `{name}` there"]
        if any(isinstance(part.config, BottleneckConfig) and part.config.stochastic_depth for part in parts):
            notes.append("AdapterHub needs the package `torchvision` to load an adapter with `drop_path`")
        return Written(form, tuple(names.modules), len(tensors), notes)

    def read_back(self, request: ExportRequest, path: Path) -> Adapter:
        """Import the folder."""
        import_request = ImportRequest(request.adapter.name, by_number=_Names(request).by_number)
        return import_adapterhub(path, request.base, import_request).adapter

    def _bottleneck(self, request: ExportRequest, acting: set[str]) -> _Part:
        """Return the config whose graphs match those at the sublayers; AdapterError if there is none."""
        for config in (*_recorded(request, BottleneckConfig), *_bottleneck_configs(request, acting)):
            tensors = _bottleneck_tensors(config, request, acting)
            if tensors is None:
                continue
            factor = config.reduction_factor
            if not isinstance(factor, Mapping):
                config = replace(config, reduction_factor=_whole(factor))
            if config.shared_W_phm and not isinstance(config.reduction_factor, int):
                raise self.refusal(
                    "its shared factors of Kronecker products need a whole number as reduction factor",
                    where=f"adapter `{request.adapter.name}`",
                    found=f"a factor of {factor}",
                    fix="train it with another width",
                )
            return _Part(config, "adapters", tensors)
        site, graph = next((site, graph) for site, graph in request.placed() if site.name in acting)
        raise self.refusal(
            "no config of its bottlenecks computes this with one activation, one wiring and one width in each layer",
            where=f"site `{site.name}`",
            found=f"{request.adapter.kind}: reads {', '.join(graph.inputs)}; {ops_of(graph)}",
        )

    def _low_rank(self, request: ExportRequest, acting: set[str]) -> _Part:
        """Return the config of LoRA or IA3 whose graphs match those at the layers; AdapterError if there is none."""
        for config in (*_recorded(request, LoraConfig), *_low_rank_configs(request, acting)):
            tensors = _low_rank_tensors(config, request, acting)
            if tensors is not None and self._is_clear(config, request):
                return _Part(config, "loras", tensors)
        site, graph = next((site, graph) for site, graph in request.placed() if site.name in acting)
        raise self.refusal(
            "its LoRA and IA3 act on query, key and value, on `ffn.up` and on `ffn.down`, on the same of them in each "
            "layer, with one rank and one factor",
            where=f"site `{site.name}`",
            found=f"{request.adapter.kind}: {ops_of(graph)}",
        )

    def _is_clear(self, config: LoraConfig, request: ExportRequest) -> bool:
        """Reject a single adapted layer of a gated FFN: models of the library name different layers `intermediate`."""
        gated = any(inside(site) == "ffn.gate" for site in request.base.sites) or not request.all_layers
        if gated and config.intermediate_lora != config.output_lora and not _recorded(request, LoraConfig):
            raise self.refusal(
                "its models with gated FFNs name different layers `intermediate`",
                where=f"adapter `{request.adapter.name}`",
                found="only `ffn.up` or only `ffn.down`",
                fix="train it on both or neither; for a base without gates, pass it as " + argument("base"),
            )
        return True


ADAPTERHUB = AdapterHubFormat()


def _name(request: ExportRequest) -> str:
    """Return the adapter's name, adjusted to be valid for a torch module."""
    return request.adapter.name.replace(".", "_")


def _document(config: Method) -> dict[str, Any]:
    """Return a config in the format of the library."""
    document = asdict(config)
    if isinstance(config, LoraConfig):
        only_mtl = ("n_up_projection", "task_specific_matrix_type", "weights_sharpness")
        document = {key: value for key, value in document.items() if key not in only_mtl}
    return document


def _recorded(request: ExportRequest, sort: type[Method]) -> list[Any]:
    """Return the config of an imported adapter; empty for other adapters."""
    record = request.imported_from
    if not isinstance(record.get("config"), Mapping):
        return []
    document = {**record, "hidden_size": request.base.sites.width}
    try:
        return [method for method in read_config(document).methods if isinstance(method, sort)]
    except (FormatError, AdapterError):
        return []


# Bottlenecks.


def _bottleneck_configs(request: ExportRequest, acting: set[str]) -> Iterator[BottleneckConfig]:
    """Yield configs whose graph matches the first sublayer, with the sites and widths of all."""
    placed = [(site, graph) for site, graph in request.placed() if site.name in acting]
    inverse = next(((site, graph) for site, graph in placed if site.role == EMBEDDINGS), None)
    sublayers = [(site, graph) for site, graph in placed if site.role in SUBLAYERS]
    fixed: dict[str, Any] = {"mh_adapter": False, "output_adapter": False, "reduction_factor": 1.0}
    if inverse is not None:
        site, graph = inverse
        owned = request.adapter.parameters(site.name)
        width = min((len(tensor) for tensor in owned.values() if tensor.ndim == 1), default=1)
        fixed |= {"inv_adapter": "nice", "inv_adapter_reduction_factor": _factor(site.width, width) / 2}
        fixed["non_linearity"] = transformers_activation(graph)
    if not sublayers:
        yield BottleneckConfig(**fixed)
        return
    site, graph = sublayers[0]
    roles = {site.role for site, _ in sublayers}
    layers = {site.layer for site, _ in sublayers}
    others = {site.layer for site in request.base.sites if site.role in roles and site.layer is not None} - layers
    ops = Counter(node.op for node in graph.nodes)
    owned = request.adapter.parameters(site.name)
    fixed |= {
        "mh_adapter": "attention" in roles,
        "cross_adapter": "cross_attention" in roles,
        "output_adapter": "ffn" in roles,
        "non_linearity": transformers_activation(graph),
        "scaling": "learned" if ops["learned_scale"] else "channel" if ops["scale_features"] else factor_of(graph),
        "use_gating": bool(ops["gate"]),
        "dropout": dropout_of(graph),
        "stochastic_depth": next((node.attributes["rate"] for node in graph.nodes if node.op == "drop_path"), 0.0),
        "leave_out": tuple(sorted(others)),
    }
    if ops["phm_linear"]:
        node = next(node for node in graph.nodes if node.op == "phm_linear")
        rule, left = owned[node.parameters["rule"]], owned[node.parameters["left"]]
        shared = {role: node.parameters[role] in graph.shared for role in ("rule", "left")}
        fixed |= {"phm_layer": True, "phm_dim": len(rule), "phm_rank": left.shape[-1]}
        fixed |= {"shared_phm_rule": shared["rule"], "shared_W_phm": shared["left"]}
    for flags in _wirings(ops["layer_norm"]):
        config = BottleneckConfig(**{**fixed, **flags})
        try:
            wanted = as_kind(config, "bottleneck").components[-1].graph
        except AdapterError:
            continue
        names = parameters_alike(graph, wanted, _same_inputs(site))
        if names is not None:
            yield replace(config, reduction_factor=_reduction(request, sublayers, names["down.bias"]))


def _wirings(norms: int) -> Iterator[dict[str, Any]]:
    """Yield fields for the inputs and outputs of a bottleneck, starting with those of the library's configs."""
    whether = (False, True)
    for parallel, before, after in product(whether, whether, (True, False)):
        for ln_before, ln_after in product(whether, whether):
            if ln_before + ln_after != norms:
                continue
            for residual, inside_norm in product((True, False, "post_add"), whether):
                yield {
                    "is_parallel": parallel,
                    "original_ln_before": before,
                    "original_ln_after": after,
                    "ln_before": ln_before,
                    "ln_after": ln_after,
                    "residual_before_ln": residual,
                    "adapter_residual_before_ln": inside_norm,
                }


def _same_inputs(site: Site) -> dict[str, str]:
    """Return inputs with equal values at a site: without a norm before it, a sublayer reads the residual stream."""
    return {"u": "x"} if site.u is not None and site.u == site.x else {}


def _reduction(
    request: ExportRequest, sublayers: Sequence[tuple[Site, AdapterGraph]], bias: str
) -> float | dict[str, float]:
    """Return the reduction factor, by layer if widths differ."""
    factors = {
        str(site.layer): _factor(site.width, len(request.adapter.parameters(site.name)[bias]))
        for site, graph in sublayers
        if bias in graph.parameters
    }
    default = Counter(factors.values()).most_common(1)[0][0]
    if set(factors.values()) == {default}:
        return default
    return {**{layer: factor for layer, factor in factors.items() if factor != default}, "default": default}


def _factor(width: int, narrow: int) -> float:
    """Return a factor with `⌊width / factor⌋ = narrow`, an integer if possible."""
    whole = width // narrow
    if whole and width // whole == narrow:
        return whole
    factor = width / narrow
    # AdapterHub rounds the quotient down, which may be just below the width
    while int(width // factor) != narrow:
        factor = float(np.nextafter(factor, 0))
    return factor


def _bottleneck_tensors(config: BottleneckConfig, request: ExportRequest, acting: set[str]) -> TensorsBySite | None:
    """Return the tensors of a config at all sites; `None` if its graphs do not match the adapter's."""
    try:
        kind = as_kind(config, "bottleneck")
    except AdapterError:
        return None
    tensors_by_site: TensorsBySite = {}
    inverted = next(iter(request.base.sites.of_roles((EMBEDDINGS,))), None)
    for site in request.base.sites:
        component = kind.component_at(site)
        if component is None or (site.role == EMBEDDINGS and site is not inverted):
            if site.name in acting:
                return None
            continue
        if site.name not in acting:
            return None
        graph = request.adapter.graphs[request.adapter.placements[site.name].graph]
        names = parameters_alike(graph, component.graph, _same_inputs(site))
        if names is None:
            return None
        owned = request.adapter.parameters(site.name)
        recipes = nice_recipes() if site.role == EMBEDDINGS else bottleneck_recipes(config)
        try:
            widths = bottleneck_widths(component, site)
        except UsageError:
            return None
        # half of the features of an invertible adapter have no effect: their weights may differ
        exact = site.role != EMBEDDINGS
        tensors = library_tensors(
            recipes, {name: owned[parameter] for name, parameter in names.items()}, widths, exact=exact
        )
        if tensors is None:
            return None
        tensors_by_site[site.name] = tensors
    return tensors_by_site


# LoRA and IA3.


def _low_rank_configs(request: ExportRequest, acting: set[str]) -> Iterator[LoraConfig]:
    """Yield configs with the sites, rank and factor of the adapter."""
    placed = [(site, graph) for site, graph in request.placed() if site.name in acting]
    site, graph = placed[0]
    owned = request.adapter.parameters(site.name)
    by_layer: dict[int | None, set[str]] = {}
    for site, _ in placed:
        by_layer.setdefault(site.layer, set()).add(inside(site).removeprefix("cross_"))
    ends = set().union(*by_layer.values())
    known = {
        "ffn.up",
        "ffn.down",
        *(f"attention.{name}" for name in _LETTERS),
        *(inside(s) for s, _ in placed if s.parts),
    }
    if not ends <= known or any(layer_ends != ends for layer_ends in by_layer.values()):
        return
    attention = {end.removeprefix("attention.") for end in ends if end.startswith("attention.")}
    fused = any(site.parts for site, _ in placed)
    letters = "".join(_LETTERS[name] for name in _LETTERS if name in attention)
    layers = {site.layer for site, _ in placed}
    others = {site.layer for site in request.base.sites if site.role in SUBLAYERS and site.layer is not None} - layers
    gated = any(node.op == "gate" for node in graph.nodes)
    names = parameters_alike(graph, lora_graph(factor_of(graph), gate=gated))
    rank = 1 if names is None else owned[names["lora_A.weight"]].shape[1]
    choices = ("q", "k", "v", "qk", "qv", "kv", "qkv") if fused else (letters,)
    for mode, chosen in product(("add", "scale"), choices):
        r = rank // (len(chosen) if fused and mode == "add" else 1) or 1
        yield LoraConfig(
            "lora",
            r=r,
            alpha=_whole(factor_of(graph) * r) if mode == "add" else factor_of(graph),
            attn_matrices=tuple(chosen),
            selfattn_lora=bool(attention),
            intermediate_lora="ffn.up" in ends,
            output_lora="ffn.down" in ends,
            leave_out=tuple(sorted(others)),
            dropout=dropout_of(graph),
            composition_mode="add" if mode == "add" else "scale",
            init_weights="lora" if mode == "add" else "ia3",
            use_gating=gated,
        )


def _whole(number: float) -> float:
    return int(number) if number == int(number) else number


def _low_rank_tensors(config: LoraConfig, request: ExportRequest, acting: set[str]) -> TensorsBySite | None:
    """Return the tensors of a config at all layers; `None` if its graphs do not match the adapter's."""
    tensors_by_site: TensorsBySite = {}
    for site, graph in request.placed():
        if site.name not in acting:
            continue
        try:
            form = low_rank_form(config, site, request.base)
        except AdapterError:
            return None
        names = parameters_alike(graph, form.graph)
        if names is None:
            return None
        owned = request.adapter.parameters(site.name)
        tensors = library_tensors(
            form.recipes, {name: owned[parameter] for name, parameter in names.items()}, form.widths
        )
        if tensors is None:
            return None
        tensors_by_site[site.name] = tensors
    return tensors_by_site


# Names of tensors.


class _Names:
    """Module names in the library's model, from the import or from the base's modules.

    Attributes:
        modules: paths of the named modules, in order.
        model_class: class of the library's model.
        by_number: whether the import matched layers by number.
    """

    def __init__(self, request: ExportRequest) -> None:
        self.modules: dict[str, None] = {}
        self._request, self._at_sites = request, dict[tuple[str, str], str]()
        record = request.imported_from
        recorded = record.get("modules")
        self._recorded: Mapping[str, Any] = recorded if isinstance(recorded, Mapping) else {}
        bare = (request.model_class or "").removesuffix("Model")
        self.model_class = str(record.get("model_class") or (f"{bare}AdapterModel" if bare else ""))
        self.by_number = False
        sites = request.base.sites
        for container, role in (("adapters", "sublayers"), ("loras", "layers")):
            paths = [str(path) for path in self._recorded.get(container, ())]
            targets = [sublayer_target(path, sites) if role == "sublayers" else Target(path, path) for path in paths]
            matched = match(targets, sites, "the imported adapter", by_number=True)
            self.by_number |= matched.by_number
            self._at_sites |= {(container, site): path for site, path in matched.modules().items()}

    def tensor(self, site: Site, container: str, name: str, source: Source) -> str:
        """Return the name of a tensor in the file."""
        if source.shared:
            return self._joined(self._outside("shared_parameters"), "shared_parameters", name, source.tensor)
        if site.role == EMBEDDINGS:
            return self._joined(self._outside("invertible_adapters"), "invertible_adapters", name, source.tensor)
        module = self._at_sites.get((container, site.name))
        if module is None:
            path = module_path(site, AdapterHubFormat.library)
            module = path if container == "loras" else _module_behind(site.role, path)
            module = f"{self._request.prefix}.{module}" if self._request.prefix else module
        self.modules[module] = None
        return self._joined(module, container, name, source.tensor)

    def _outside(self, container: str) -> str:
        """Return the path of a module outside of layers."""
        recorded = self._recorded.get(container) or [self._request.prefix or ""]
        return str(recorded[0])

    @staticmethod
    def _joined(*names: str) -> str:
        return ".".join(name for name in names if name)


def _module_behind(role: str, path: str) -> str:
    """Return the module that contains the bottleneck after a sublayer whose last product is at `path`.

    BERT and similar models have a module for the sublayer's output; others have numbered modules in the layer.
    """
    parent = path.rpartition(".")[0]
    for end, acts in MODULES_BEHIND.items():
        if f".{parent}".endswith(f".{end}"):
            if acts == role:
                return parent
            break
    names = path.split(".")
    last = max((at for at, name in enumerate(names) if name.isdecimal()), default=len(names) - 1)
    module = next(container for container, acts in CONTAINERS_BEHIND.items() if acts == role)
    return ".".join([*names[: last + 1], module])

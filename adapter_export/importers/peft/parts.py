"""What acts where: LoRA and IA3 at linear sites, with the weights laid out as adapters have them."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from adapter_export.dtypes import Weights
from adapter_export.errors import AdapterError, TensorError
from adapter_export.graph.adapter import Placement
from adapter_export.graph.chain import Chain
from adapter_export.graph.graph import AdapterGraph
from adapter_export.graph.kinds.ia3 import ia3_graph
from adapter_export.graph.kinds.lora import lora_graph
from adapter_export.importers.peft.options import Options
from adapter_export.sites.site import LAYERS, Site

Tensors = Mapping[str, np.ndarray]


@dataclass(frozen=True)
class Update:
    """What acts at one site.

    Attributes:
        path: of the module, as the adapter names it.
        site: a call of that module in the base.
        tensors: as `tensors.Sorted.adapted` has them; empty where a bias alone was trained.
        shift: what a trained bias of the base adds to the module's output [out].
        value: the site value that a shift alone is added to: `h`, or `y` behind a norm that follows a sum.
    """

    path: str
    site: Site
    tensors: Tensors
    shift: np.ndarray | None = None
    value: str = "h"


@dataclass(frozen=True)
class Parts:
    """What an `Adapter` is made of."""

    graphs: dict[str, AdapterGraph] = field(default_factory=dict)
    placements: dict[str, Placement] = field(default_factory=dict)
    weights: Weights = field(default_factory=dict)

    def put(self, site: Site, name: str, graph: AdapterGraph, tensors: Tensors, **widths: int) -> None:
        """Put a graph at a site."""
        known = {"d": site.width, "d_in": site.width_in, **widths}
        self.graphs.setdefault(name, graph)
        self.placements[site.name] = Placement(name, {symbol: known[symbol] for symbol in graph.symbols()})
        for parameter, tensor in tensors.items():
            self.weights[f"{site.name}.{parameter}"] = np.ascontiguousarray(tensor, np.float32)


def make_parts(updates: Sequence[Update], options: Options, where: object) -> Parts:
    """Graphs, placements and weights, in the order of `updates`.

    Raises:
        TensorError: tensors have other shapes than the base's layers or the config's ranks; all of them are listed.
        AdapterError: the factors depend on the version of PEFT, and the config does not say it.
    """
    faults = dict.fromkeys(fault for update in updates for fault in _faults(update, options))
    if faults:
        raise TensorError(
            "tensors do not fit the base's layers and the config",
            where=where,
            found="; ".join(faults),
            fix="give the base that the adapter was trained on, and the config that was saved with it",
        )
    if options.kind == "ia3":
        return _ia3_parts(updates, options)
    _check_patterns(updates, options, where)
    return _lora_parts(updates, options)


def _faults(update: Update, options: Options) -> Iterator[str]:
    expected = _expected_shapes(update, options)
    for name, tensor in update.tensors.items():
        if tensor.shape != expected[name]:
            yield f"`{update.path}.{name}` has shape {list(tensor.shape)}, not {list(expected[name])}"
    if update.shift is not None and update.shift.shape != (update.site.width,):
        yield f"`{update.path}.bias` has shape {list(update.shift.shape)}, not {[update.site.width]}"


def _expected_shapes(update: Update, options: Options) -> dict[str, tuple[int, ...]]:
    width, width_in = update.site.width, update.site.width_in
    if options.kind == "ia3":
        return {"ia3_l": (1, width_in) if _scales_input(update, options) else (width, 1)}
    rank = options.rank_at(update.path)
    return {"lora_A.weight": (rank, width_in), "lora_B.weight": (width, rank), "lora_B.bias": (width,)}


def _check_patterns(updates: Sequence[Update], options: Options, where: object) -> None:
    """Refuse patterns that versions of PEFT read differently, where nothing says which one wrote them."""
    paths = dict.fromkeys(update.path for update in updates if update.tensors and not options.versioned)
    factors = {path: (options.older_factor_at(path), options.factor_at(path)) for path in paths}
    faults = [
        f"`{path}`: the factor {older:g} before version 0.15 and {newer:g} since"
        for path, (older, newer) in factors.items()
        if older != newer
    ]
    if faults:
        raise AdapterError(
            "has an `alpha_pattern` that versions of PEFT read differently, and names no version",
            where=where,
            found="; ".join(faults),
            fix="add the `peft_version` that trained it to the config if it is 0.15 or newer; else write whole paths "
            "in the pattern, with the alphas that were used",
        )


def _lora_parts(updates: Sequence[Update], options: Options) -> Parts:
    parts = Parts()
    names: dict[tuple[float, bool], str] = {}
    for update in updates:
        if not update.tensors:
            _put_shift(parts, update)
            continue
        factor, tensors = _as_stored(update, options.factor_at(update.path))
        bias = "lora_B.bias" in tensors
        name = names.setdefault((factor, bias), _graph_name(bias, [key[1] for key in names].count(bias)))
        graph = lora_graph(factor, bias=bias, dropout=options.dropout)
        parts.put(update.site, name, graph, tensors, r=tensors["lora_A.weight"].shape[1])
    return parts


def _graph_name(bias: bool, number: int) -> str:
    name = "lora_bias" if bias else "lora"
    return f"{name}_{number + 1}" if number else name


def _as_stored(update: Update, factor: float) -> tuple[float, Tensors]:
    """The factor that stays in the graph, and the tensors `[in, out]`.

    A trained bias of the base stands beside the update, not inside its factor: then the factor goes into the weights,
    in float64 and rounded once.
    """
    tensors, shift = update.tensors, update.shift
    stored = {name: tensor.T for name, tensor in tensors.items()}
    if shift is None:
        return factor, stored
    bias = tensors["lora_B.bias"].astype(np.float64) * factor if "lora_B.bias" in tensors else 0.0
    scaled = stored["lora_B.weight"].astype(np.float64) * factor
    return 1.0, {**stored, "lora_B.weight": scaled, "lora_B.bias": bias + shift}


def _put_shift(parts: Parts, update: Update) -> None:
    """A bias alone: a LoRA of rank 1 whose matrices are zeros, so that it fills the slots of one with a bias.

    At a linear layer that is the graph of the LoRA beside it; elsewhere a graph reads the value that it replaces.
    """
    assert update.shift is not None
    linear = update.site.role in LAYERS
    name, graph = (
        ("lora_bias", lora_graph(1.0, bias=True)) if linear else (f"shift_{update.value}", _shift(update.value))
    )
    width_in = update.site.width_in if linear else update.site.width
    zeros = {"lora_A.weight": np.zeros((width_in, 1)), "lora_B.weight": np.zeros((1, update.site.width))}
    parts.put(update.site, name, graph, {**zeros, "lora_B.bias": update.shift}, r=1)


def _shift(value: str) -> AdapterGraph:
    """`v + B(A v)` in the place of `v`, with a bias on B."""
    chain = Chain(value)
    chain.linear("lora_A", "d", "r", bias=False)
    chain.linear("lora_B", "r", "d")
    delta, chain.value = chain.value, value
    chain.op("add", "result", delta)
    return chain.graph(replaces=value)


def _ia3_parts(updates: Sequence[Update], options: Options) -> Parts:
    parts = Parts()
    for update in updates:
        name, value = ("ia3_input", "u") if _scales_input(update, options) else ("ia3", "h")
        parts.put(update.site, name, ia3_graph(value), {"scaling.weight": update.tensors["ia3_l"].reshape(-1)})
    return parts


def _scales_input(update: Update, options: Options) -> bool:
    """Whether IA3 multiplies the layer's input (`peft.IA3Model._check_target_module_feedforward`).

    PEFT matches the bare ends of paths here, not whole names. A config that says nothing leaves it to the shape.
    """
    if isinstance(options.feedforward, str):
        return re.fullmatch(options.feedforward, update.path) is not None
    if options.feedforward is None:
        return bool(update.tensors["ia3_l"].shape[0] == 1)
    return update.path.endswith(options.feedforward) if options.feedforward else False

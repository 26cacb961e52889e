"""The options that plain tensors show by their names and shapes; the others are given."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from adapter_export.errors import AdapterError, UsageError
from adapter_export.graph.adapter import HEAD
from adapter_export.graph.kinds import BottleneckOptions, Kind, LoraOptions, PhmOptions, kind_named
from adapter_export.graph.kinds.bottleneck import Scaling

Tensors = Mapping[str, np.ndarray]

_LORA_A = re.compile(r"(?P<stream>(?:.+\.)?)layers\.\d+\.(?P<on>.+)\.lora_A\.weight")


def fitting_kind(tensors: Tensors, name: str, **given: Any) -> Kind:
    """The kind of a name with the options that the tensors show and those that are given.

    Shown are, of bottlenecks, biases, norms, gates and what kind of learned scaling there is; of LoRA, the linear
    layers, their ranks, biases and gates. Nothing shows the activation, a constant scaling, LoRA's alpha.

    Args:
        tensors: `<site>.down.weight` [d, b] and so on.
        name: of the kind.
        given: options by their names, such as `activation="relu"`; they take precedence.

    Raises:
        UsageError: the kind is not known, has no such option, or one is needed that nothing shows.
        AdapterError: the tensors are not of this kind, or LoRA's ranks differ where only one may stand.
    """
    maker = kind_named(name)
    names = [key for key in tensors if not key.startswith(f"{HEAD}.")]
    if isinstance(maker.defaults, BottleneckOptions):
        _require(name, given, "activation")
        shown = _shown_by_bottlenecks({key: tensors[key] for key in names}, maker.defaults)
    elif isinstance(maker.defaults, LoraOptions):
        shown = _shown_by_lora({key: tensors[key] for key in names})
        if not set(given.get("on", shown["on"])) <= set(given.get("alphas", {})):
            _require(name, given, "alpha")
    else:
        if hasattr(maker.defaults, "activation"):
            _require(name, given, "activation")
        shown = {}
    return maker.changed(**{**shown, **given})


def _require(kind: str, given: Mapping[str, Any], option: str) -> None:
    if option not in given:
        raise UsageError(f"nothing in the tensors shows the {option} of `{kind}`", fix=f"give `--{option}`")


def _shown_by_bottlenecks(tensors: Tensors, defaults: BottleneckOptions) -> dict[str, Any]:
    def there(*ends: str) -> bool:
        return any(name.endswith(ends) for name in tensors)

    shown: dict[str, Any] = {
        "bias": there(".down.bias", ".up.bias"),
        "norm_before": there(".norm_before.weight"),
        "norm_after": there(".norm_after.weight"),
        "gate": there(".gate.weight"),
    }
    if there(".left", ".right"):
        shown["phm"] = replace(
            defaults.phm or PhmOptions(),
            shared_rule=not there(".down.rule", ".up.rule"),
            shared_weights=any(re.fullmatch(r"shared\..+\.(left|right)", name) for name in tensors),
        )
    elif there(".down.weight"):
        shown["phm"] = None
    scaling = _learned_scaling(tensors)
    return shown if scaling is None else {**shown, "scaling": scaling}


def _learned_scaling(tensors: Tensors) -> Scaling | None:
    shapes = {tensor.shape for name, tensor in tensors.items() if name.endswith(".scaling.weight")}
    if not shapes:
        return None
    return "learned" if shapes == {(1,)} else "channel"


def _shown_by_lora(tensors: Tensors) -> dict[str, Any]:
    ranks: dict[str, set[int]] = {}
    for name, tensor in tensors.items():
        found = _LORA_A.fullmatch(name)
        if found and tensor.ndim == 2:
            ranks.setdefault(found["stream"] + found["on"], set()).add(tensor.shape[1])
    if not ranks:
        raise AdapterError(
            "the tensors hold no LoRA",
            found=", ".join(list(tensors)[:3]) or "no tensors",
            expected="`layers.0.attention.query.lora_A.weight` [d_in, r] and `lora_B.weight` [r, d]",
        )
    several = {on: sizes for on, sizes in ranks.items() if len(sizes) > 1}
    if several:
        raise AdapterError(
            "LoRA's rank differs by layer, so that one alpha means several factors",
            found="; ".join(f"`{on}` {sorted(sizes)}" for on, sizes in several.items()),
            expected="one rank for each name of a linear layer",
            fix="pad the smaller ones with zeros, and scale `lora_B` to the factor of the larger rank",
        )
    return {
        "on": tuple(ranks),
        "ranks": {on: rank for on, (rank,) in ranks.items()},
        "bias": any(name.endswith(".lora_B.bias") for name in tensors),
        "gate": any(name.endswith(".gate.weight") for name in tensors),
    }

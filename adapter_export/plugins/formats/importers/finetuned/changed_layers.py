"""Layers of a base that a checkpoint changes, and tensors whose change no adapter expresses."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from adapter_export.bases.base_view import BaseView
from adapter_export.errors import AdapterError, UsageError
from adapter_export.numerics.merged_layers import Layer
from adapter_export.plugins.formats.importers.finetuned.low_rank import Matrix, WeightChange, factors, weight_change
from adapter_export.plugins.formats.importers.peft.methods.method import Change
from adapter_export.plugins.formats.importers.placing import norm_sites
from adapter_export.sites.site import Site
from adapter_export.words import argument, did_you_mean

if TYPE_CHECKING:
    from adapter_export.torch_backend.checkpoint_folder import CheckpointFolder


@dataclass(frozen=True)
class ChangedLayer:
    """A linear layer whose weight or bias a checkpoint changes.

    Attributes:
        path: module in the base.
        sites: its calls.
        weight: name of the new weight in the checkpoint; `None` if it is unchanged.
        bias: name of the new bias in the checkpoint; `None` if it is unchanged.
    """

    path: str
    sites: tuple[Site, ...]
    weight: str | None = None
    bias: str | None = None


@dataclass(frozen=True)
class ChangedNorm:
    """A norm after a sum or the embeddings that a checkpoint changes; names as of `ChangedLayer`."""

    path: str
    site: Site
    value: str
    weight: str | None = None
    bias: str | None = None


@dataclass(frozen=True)
class Changes:
    """The changes that an adapter carries, and tensors of the base whose changes are left out."""

    layers: tuple[ChangedLayer, ...]
    norms: tuple[ChangedNorm, ...]
    left_out: tuple[str, ...]


class LayerReader:
    """Reads a layer of the base and of the checkpoint, one at a time, in float64."""

    def __init__(self, view: BaseView, checkpoint: CheckpointFolder) -> None:
        self._view, self._checkpoint = view, checkpoint

    def weights(self, layer: ChangedLayer) -> tuple[Matrix, Matrix, float]:
        """Return a changed weight [out, in] before and after, and the rounding unit of its type.

        The weight of the base is rounded to the checkpoint's type: its rounding errors are no change.
        """
        assert layer.weight is not None, "the weight is changed"
        of_base = self.of_base(layer)
        after = self._checkpoint.tensor(layer.weight)
        before = self._checkpoint.rounded(layer.weight, of_base.weight.astype(np.float32))
        return (
            before.astype(np.float64),
            (after.T if of_base.in_first else after).astype(np.float64),
            self._checkpoint.unit(layer.weight),
        )

    def of_base(self, layer: ChangedLayer) -> Layer:
        """Return the layer of the base."""
        found = self._view.layer(layer.sites[0])
        assert found is not None, "a changed layer has tensors"
        return found

    def vector(self, name: str, of_base: np.ndarray) -> Matrix:
        """Return a vector of the checkpoint; elements that differ only by rounding are those of the base."""
        after = self._checkpoint.tensor(name)
        same = after == self._checkpoint.rounded(name, of_base.astype(np.float32))
        return np.where(same, of_base, after).astype(np.float64)

    def change(self, layer: ChangedLayer) -> WeightChange:
        """Return the difference of a layer's weights; of an unchanged weight, one of rank 0."""
        if layer.weight is None:
            return WeightChange(0.0, np.zeros(0), 0)
        return weight_change(*self.weights(layer))

    def approximation(self, layer: ChangedLayer, change: WeightChange, rank: int, *, whole: bool) -> Change:
        """Return the change of a layer for an adapter: of this rank, or as a full matrix."""
        bias = None
        if layer.bias is not None:
            of_base = self.of_base(layer).bias
            assert of_base is not None, "a changed bias is one of the base"
            bias = self.vector(layer.bias, of_base)
        if layer.weight is None or (rank == 0 and not whole):
            return Change(scale=change.scale, bias=bias)
        before, after, _ = self.weights(layer)
        if whole:
            return Change(dense=after - before, bias=bias)
        up, down = factors(before, after, change, rank)
        return Change(scale=change.scale, up=up, down=down, bias=bias)


def find_changes(
    changed: Mapping[str, str], view: BaseView, checkpoint: CheckpointFolder, leave_out: Sequence[str]
) -> Changes:
    """Assign changed tensors to layers and norms of the base.

    Args:
        changed: names in the checkpoint by name in the base.
        view: the base.
        checkpoint: the checkpoint.
        leave_out: modules whose changes are left out: parts of names, such as `embeddings`.

    Raises:
        AdapterError: an adapter cannot carry the change of a tensor; the message lists all.
        UsageError: a module that is left out has no changes.
    """
    left_out = _left_out(changed, leave_out)
    carried = {name: stored for name, stored in changed.items() if name not in left_out}
    layers, faults = _layers(carried, view)
    norms = _norms(carried, view)
    paths = [*(layer.path for layer in layers), *(norm.path for norm in norms)]
    reached = {f"{path}.{role}" for path in paths for role in ("weight", "bias")}
    faults |= {name: _reason(name, view) for name in carried if name not in reached and name not in faults}
    if faults:
        raise AdapterError(
            "changes tensors that an adapter cannot carry",
            where=checkpoint.path,
            found="; ".join(f"`{name}`: {reason}" for name, reason in faults.items()),
            expected="changes of linear layers, of norms after a sum or the embeddings, and of a head",
            fix="build a bundle of the checkpoint; or omit these changes with "
            + argument("leave_out", list(dict.fromkeys(map(_module, faults))))
            + " and measure the loss on rows",
        )
    return Changes(tuple(layers), tuple(norms), tuple(left_out))


def _module(name: str) -> str:
    return name.rpartition(".")[0].rpartition(".")[2]


def _left_out(changed: Mapping[str, str], leave_out: Sequence[str]) -> list[str]:
    """Return the changed tensors of the modules that a user leaves out."""
    for part in leave_out:
        if not any(_is_in(part, name) for name in changed):
            raise UsageError(
                "no changed tensor belongs to the module",
                where=argument("leave_out"),
                found=f"`{part}`",
                expected="a part of the name of a changed tensor",
                fix=did_you_mean(part, {_module(name) for name in changed}, "remove it"),
            )
    return [name for name in changed if any(_is_in(part, name) for part in leave_out)]


def _is_in(part: str, name: str) -> bool:
    return f".{part}." in f".{name}."


def _layers(changed: Mapping[str, str], view: BaseView) -> tuple[list[ChangedLayer], dict[str, str]]:
    """Return changed linear layers, and reasons why others cannot be carried, by name of the tensor."""
    calls: dict[str, list[Site]] = {}
    for site in view.sites.of_roles(("linear",)):
        if site.path is not None and {f"{site.path}.weight", f"{site.path}.bias"} & changed.keys():
            calls.setdefault(site.path, []).append(site)
    layers, faults = [], dict[str, str]()
    for path, sites in calls.items():
        weight, bias = f"{path}.weight", f"{path}.bias"
        reason = _fault(sites, view.layer(sites[0]), (weight, bias))
        if reason is None:
            layers.append(ChangedLayer(path, tuple(sites), changed.get(weight), changed.get(bias)))
        else:
            faults |= {name: reason for name in (weight, bias) if name in changed}
    return layers, faults


def _fault(sites: Sequence[Site], layer: Layer | None, names: tuple[str, str]) -> str | None:
    """Return the reason why the change of a layer cannot be carried, or `None`."""
    if layer is None or layer.names != names:
        return "the base computes something else with it than a linear layer"
    others = layer.calls - len({site.h for site in sites})
    if others > 0:
        return f"the base also uses it {others} times where adapters cannot act"
    return None


def _norms(changed: Mapping[str, str], view: BaseView) -> list[ChangedNorm]:
    """Return changed norms with sites; factors of zero in the base cannot be rescaled."""
    norms = []
    for path, (site, value) in norm_sites(view.sites).items():
        weight, bias = changed.get(f"{path}.weight"), changed.get(f"{path}.bias")
        factors_of_base = view.tensor(f"{path}.weight")
        if (weight or bias) and factors_of_base is not None and factors_of_base.all():
            norms.append(ChangedNorm(path, site, value, weight, bias))
    return norms


def _reason(name: str, view: BaseView) -> str:
    tensor = view.tensor(name)
    if tensor is None:
        return "no floating-point tensor"
    if tensor.ndim == 1:
        return "a norm or bias without a site"
    return "a matrix without a site, such as an embedding" if tensor.ndim == 2 else "no matrix"

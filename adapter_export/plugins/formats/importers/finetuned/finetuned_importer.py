"""Import of a fine-tuned or merged checkpoint as an adapter of its base."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from adapter_export.bases.base_view import BaseView
from adapter_export.errors import AdapterError, within
from adapter_export.graph.adapter import Adapter
from adapter_export.plugins.formats.importers.finetuned.changed_layers import (
    ChangedLayer,
    ChangedNorm,
    Changes,
    LayerReader,
    find_changes,
)
from adapter_export.plugins.formats.importers.finetuned.finetuned_head import FinetunedHead, take_finetuned_head
from adapter_export.plugins.formats.importers.finetuned.low_rank import WeightChange
from adapter_export.plugins.formats.importers.finetuned.rank_choice import LayerSpectrum, RankLimits, choose_ranks
from adapter_export.plugins.formats.importers.finetuned.same_base import (
    BaseWeights,
    TensorComparison,
    check_complete,
    compare_tensors,
)
from adapter_export.plugins.formats.importers.match import check_architecture
from adapter_export.plugins.formats.importers.placing import place_change, place_norm, place_shift
from adapter_export.plugins.formats.importers.tensor_map import Recipe, TensorMap
from adapter_export.reporting import Reporter
from adapter_export.tables import number_of
from adapter_export.words import quoted

if TYPE_CHECKING:
    from adapter_export.torch_backend.checkpoint_folder import CheckpointFolder

_BYTES = 4
_KIND = "lora"


@dataclass(frozen=True)
class FinetunedRequest:
    """Options of an import.

    Attributes:
        name: name of the adapter.
        limits: limits of its ranks and its size.
        leave_out: modules whose changes are left out.
        without_head: whether to omit the head.
        head: the head of modules after the model, as of sentence-transformers; `None` takes that of the class.
    """

    name: str
    limits: RankLimits
    leave_out: Sequence[str] = ()
    without_head: bool = False
    head: FinetunedHead | None = None


@dataclass(frozen=True)
class ImportedLayer:
    """A layer that an adapter changes.

    Attributes:
        path: its module in the base.
        place: name of its site without the layer.
        rank: rank of the adapter's matrices; the full one for a matrix that is carried whole.
        change: the difference of its weights.
        whole: whether it is carried as a full matrix.
        size: bytes of its tensors.
    """

    path: str
    place: str
    rank: int
    change: WeightChange
    whole: bool
    size: int

    @property
    def exact(self) -> bool:
        """True if nothing but rounding errors is lost."""
        return self.whole or self.rank == self.change.rank

    @property
    def captured(self) -> float:
        """Norm of the carried change, relative to the change."""
        return 1.0 if self.whole else self.change.captured(self.rank)


@dataclass(frozen=True)
class ImportedCheckpoint:
    """An adapter made from a checkpoint, and an account of the checkpoint's tensors.

    Attributes:
        adapter: the adapter.
        comparison: the tensors beside those of the base.
        layers: the changed linear layers.
        head: the head.
        left_out: tensors whose changes are left out.
        notes: notes for the user.
    """

    adapter: Adapter
    comparison: TensorComparison
    layers: tuple[ImportedLayer, ...]
    head: FinetunedHead
    left_out: tuple[str, ...]
    notes: tuple[str, ...]

    @property
    def exact(self) -> bool:
        """True if the change of the base loses nothing but rounding errors."""
        return not self.left_out and all(layer.exact for layer in self.layers)


CheckTask = Callable[[FinetunedHead], None]
"""Checks the head before weights are computed, such as against rows."""


def import_checkpoint(
    checkpoint: CheckpointFolder,
    base: tuple[BaseView, BaseWeights],
    request: FinetunedRequest,
    reporter: Reporter,
    check_task: CheckTask = lambda _: None,
) -> ImportedCheckpoint:
    """Import a checkpoint.

    Args:
        checkpoint: the checkpoint, whose tensors are read one at a time.
        base: the base, as sites and as tensors.
        request: options of the import.
        reporter: receives the steps.
        check_task: checks the head before weights are computed.

    Raises:
        OtherModulesError: it was made from another base.
        AdapterError: an adapter cannot carry a change, or nothing is changed.
        UsageError: options exclude each other.
    """
    view, weights = base
    model_type = checkpoint.config.get("model_type")
    with within(checkpoint.path):
        check_architecture(str(model_type) if model_type else None, view.model_type, by_number=False)
    comparison = compare_tensors(checkpoint, weights, reporter)
    head = _head(checkpoint, view, comparison.extra, request)
    missing = comparison.missing if head.library is None else _inner(comparison.missing, view)
    check_complete(checkpoint, weights, missing)
    check_task(head)
    changed = {name: stored for name, stored in comparison.changed.items() if stored not in head.read}
    changes = find_changes(changed, view, checkpoint, request.leave_out)
    if not (changes.layers or changes.norms or head.head):
        raise AdapterError(
            "does not differ from the base", where=checkpoint.path, found=f"{comparison.equal} equal tensors"
        )
    mapped = TensorMap({}, checkpoint.path)
    reader = LayerReader(view, checkpoint)
    for norm in changes.norms:
        _place_norm(mapped, norm, view, reader)
    if head.head is not None:
        recipes = {name: Recipe((), head.weights[name].copy) for name in head.head.graph.parameters}
        mapped.take_head(head.head, recipes, {})
    layers = _place_layers(mapped, changes.layers, reader, request.limits, reporter)
    mapped.check()
    return ImportedCheckpoint(
        _adapter(mapped, view, head, request, _record(checkpoint, comparison, changes, layers)),
        comparison,
        tuple(layers),
        head,
        changes.left_out,
        tuple(_notes(checkpoint, comparison, head, changes)),
    )


def _head(
    checkpoint: CheckpointFolder, view: BaseView, extra: Sequence[str], request: FinetunedRequest
) -> FinetunedHead:
    if request.without_head:
        return FinetunedHead(omitted=tuple(extra))
    if request.head is not None and not extra:
        return request.head
    return take_finetuned_head(checkpoint, view, extra)


def _inner(missing: Sequence[str], view: BaseView) -> list[str]:
    """Return missing tensors of layers and norms; a model of another class may lack a pooler."""
    inside = {site.path for site in view.sites if site.path is not None and not site.is_outside}
    inside |= {
        site.norm.weight.rpartition(".")[0]
        for site in view.sites.sublayers
        if site.norm is not None and site.norm.weight is not None
    }
    return [name for name in missing if name.rpartition(".")[0] in inside]


def _place_layers(
    mapped: TensorMap, layers: Sequence[ChangedLayer], reader: LayerReader, limits: RankLimits, reporter: Reporter
) -> list[ImportedLayer]:
    """Choose ranks, and place the changes of linear layers."""
    spectra = []
    for count, layer in enumerate(layers):
        reporter.step("finding ranks", count, len(layers))
        site = layer.sites[0]
        cost = _BYTES * (site.width + site.width_in) * len(layer.sites)
        change = reader.change(layer)
        spectra.append(LayerSpectrum(change, cost, _vector_bytes(layer, change)))
    ranks = choose_ranks(spectra, limits, _bytes_of(mapped), mapped.where)
    imported = []
    for count, (layer, spectrum, rank) in enumerate(zip(layers, spectra, ranks, strict=True)):
        reporter.step("computing the adapter", count, len(layers))
        change = spectrum.change
        whole = limits.dense and change.rank is None
        of_base = reader.of_base(layer)
        approximation = reader.approximation(layer, change, rank, whole=whole)
        before = _bytes_of(mapped)
        for site in layer.sites if whole or rank or spectrum.vector_bytes else ():
            place_change(mapped, layer.path, site, approximation, of_base.bias)
        size = _bytes_of(mapped) - before
        imported.append(ImportedLayer(layer.path, layer.sites[0].place, rank, change, whole, size))
    return imported


def _bytes_of(mapped: TensorMap) -> int:
    return sum(tensor.nbytes for tensor in mapped.weights.values())


def _vector_bytes(layer: ChangedLayer, change: WeightChange) -> int:
    """Return the bytes of a layer's bias and factors."""
    vectors = (layer.bias is not None) + 2 * (change.scale is not None)
    return _BYTES * layer.sites[0].width * vectors * len(layer.sites)


def _place_norm(mapped: TensorMap, norm: ChangedNorm, view: BaseView, reader: LayerReader) -> None:
    """Place a changed norm, or only its bias."""
    roles = {"weight": norm.weight, "bias": norm.bias}
    of_base = {role: view.tensor(f"{norm.path}.{role}") for role in roles}
    before = {role: tensor.astype(np.float64) for role, tensor in of_base.items() if tensor is not None}
    after = {
        role: tensor if (name := roles[role]) is None else reader.vector(name, tensor)
        for role, tensor in before.items()
    }
    if norm.weight is None:
        place_shift(mapped, norm.site, norm.value, after["bias"] - before["bias"])
    else:
        place_norm(mapped, norm.site, norm.value, before, after)


def _adapter(
    mapped: TensorMap, view: BaseView, head: FinetunedHead, request: FinetunedRequest, record: Mapping[str, object]
) -> Adapter:
    """Return the adapter, with its sites in the order of the base."""
    order = {site.name: number for number, site in enumerate(view.sites)}
    placements = dict(sorted(mapped.placements.items(), key=lambda item: order[item[0]]))
    return Adapter(
        request.name,
        _KIND,
        view.fingerprint,
        mapped.graphs,
        placements,
        mapped.weights,
        head.head,
        {"imported": record},
    )


def _record(
    checkpoint: CheckpointFolder, comparison: TensorComparison, changes: Changes, layers: Sequence[ImportedLayer]
) -> dict[str, object]:
    return {
        "from": "finetuned",
        "class": checkpoint.name,
        "dtype": checkpoint.dtype,
        "modules": {"drop": comparison.renaming.drop, "add": comparison.renaming.add},
        "left_out": list(changes.left_out),
        "exact": all(layer.exact for layer in layers),
    }


def _notes(
    checkpoint: CheckpointFolder, comparison: TensorComparison, head: FinetunedHead, changes: Changes
) -> list[str]:
    notes = list(head.notes)
    if changes.left_out:
        notes.append(f"left out: changes of {number_of(len(changes.left_out), 'tensor')}: {quoted(changes.left_out)}")
    if head.omitted:
        notes.append(f"the head is left out: {quoted(head.omitted)}")
    if checkpoint.unread:
        notes.append(f"`{checkpoint.name}` does not read {quoted(checkpoint.unread)}, so they are ignored")
    if comparison.missing:
        notes.append(f"`{checkpoint.name}` does not have {quoted(comparison.missing)}: the base's are unchanged")
    return notes

"""Result of the import of a checkpoint: the adapter, and what it loses."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from adapter_export.graph.adapter import Adapter
from adapter_export.plugins.formats.importers.finetuned.finetuned_importer import ImportedLayer
from adapter_export.plugins.formats.importers.finetuned.library_proof import Deviation
from adapter_export.plugins.formats.importers.finetuned.rank_choice import captured_norm
from adapter_export.tables import Described, Table, number_of
from adapter_export.tables import size as size_text


@dataclass(frozen=True)
class LayerGroup:
    """Changed linear layers of one place, such as `attention.query`.

    Attributes:
        place: name of the sites, without the layer.
        layers: number of layers.
        ranks: lowest and highest rank.
        exact: number of layers that lose nothing but rounding errors.
        scaled: number of layers with a factor per output, as of a DoRA.
        captured: Frobenius norm of the carried change, relative to the change.
        bytes: size of the tensors.
    """

    place: str
    layers: int
    ranks: tuple[int, int]
    exact: int
    scaled: int
    captured: float
    bytes: int


@dataclass(frozen=True, repr=False)
class FinetunedImport(Described):
    """An adapter made from a fine-tuned checkpoint, and an account of its tensors.

    Attributes:
        adapter: the adapter.
        dtype: type of the checkpoint's weights; differences below its rounding are no change.
        layers: the changed linear layers.
        equal: number of tensors that equal the base's.
        left_out: tensors whose changes are left out, and those of an omitted head.
        deviation: difference of the checkpoint's outputs to those of base and adapter, on sample inputs.
        comparison: scores of checkpoint and adapter on labelled rows, as `compare` returns them; `None` without rows.
        notes: notes for the user.
    """

    adapter: Adapter
    dtype: str
    layers: tuple[ImportedLayer, ...]
    equal: int
    left_out: tuple[str, ...]
    deviation: Deviation
    comparison: Described | None = None
    notes: tuple[str, ...] = ()

    @property
    def is_exact(self) -> bool:
        """True if only rounding errors are lost."""
        return not self.left_out and all(layer.exact for layer in self.layers)

    @property
    def captured(self) -> float:
        """Frobenius norm of the carried change of all linear layers, relative to the change."""
        return _captured(self.layers)

    def described(self) -> Mapping[str, object]:
        """Return the facts of `repr` and notebooks."""
        return {
            "adapter": self.adapter.name,
            "layers": len(self.layers),
            "exact": self.is_exact,
            "captured": round(self.captured, 4),
            "left_out": len(self.left_out),
            "deviation": self.deviation.difference,
        }

    def groups(self) -> Iterator[LayerGroup]:
        """Yield the changed layers by place."""
        by_place: dict[str, list[ImportedLayer]] = {}
        for layer in self.layers:
            by_place.setdefault(layer.place, []).append(layer)
        for place, layers in by_place.items():
            ranks = [layer.rank for layer in layers]
            yield LayerGroup(
                place,
                len(layers),
                (min(ranks), max(ranks)),
                sum(layer.exact for layer in layers),
                sum(layer.change.scale is not None for layer in layers),
                _captured(layers),
                sum(layer.size for layer in layers),
            )

    def table(self) -> Table:
        """Return the ranks and the loss of each group of layers."""
        rows = [
            (
                group.place,
                group.layers,
                f"{group.ranks[0]}" if group.ranks[0] == group.ranks[1] else f"{group.ranks[0]} to {group.ranks[1]}",
                f"{group.exact} of {group.layers}",
                f"{group.captured:.1%}",
                size_text(group.bytes),
            )
            for group in self.groups()
        ]
        title = f"{number_of(len(self.layers), 'changed linear layer')}, {self.equal} tensors unchanged ({self.dtype})"
        return Table(("site", "layers", "rank", "exact", "norm captured", "size"), rows, title, "lrrrrr", ("layers",))


def _captured(layers: Sequence[ImportedLayer]) -> float:
    return captured_norm([(layer.change.norm, layer.captured) for layer in layers])

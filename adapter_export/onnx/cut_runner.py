"""The reference for a base that exists only as ONNX: the base in ONNX Runtime, the adapters in NumPy float64."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np
import onnxruntime as ort

from adapter_export.format.manifest import Precision
from adapter_export.graph.adapter import HEAD, Adapter
from adapter_export.graph.bind import needs_base_norm
from adapter_export.onnx.base import OnnxBase
from adapter_export.onnx.expose import Cut, cut, cut_input, exposed, piece
from adapter_export.onnx.numerics import numerics
from adapter_export.onnx.pieces import Pieces, weights_are_many
from adapter_export.reference.bound import BORROWED
from adapter_export.reference.evaluate import evaluate_head, evaluate_site
from adapter_export.reference.fit import check_fit
from adapter_export.reference.runner import Arrays, head_output
from adapter_export.sites.site import Site, SiteMap

_NAMES: dict[Precision, str] = {
    "fp32": "float32",
    "fp16": "float16",
    "int8": "int8",
    "int8-weights": "float32 with 8-bit weights",
    "int4-weights": "float32 with 4-bit weights",
}


_MOST_CUT = 4
"""How many sets of places a base stays cut at; each has the base's weights in memory."""


class CutRunner:
    """Computes what a bundle must compute, without the exported graph; a `reference.runner.Runner`.

    The base is cut where an adapter acts. Piece by piece, one more site's values are known, the adapter is evaluated on
    them in float64, and its result goes into the next piece; the last one gives the outputs. Together the pieces do the
    work of one run; those of a base with many weights are not open all at once. The base runs in its own precision as
    it is, not optimised.

    Args:
        base: the base.
    """

    def __init__(self, base: OnnxBase) -> None:
        self._base = base
        self._outputs = [record.name for record in base.outputs]
        self._cuts: dict[frozenset[tuple[str, str]], _Pieces] = {}

    @property
    def description(self) -> str:
        """What computes."""
        base = f"onnxruntime {ort.__version__} {_NAMES[numerics(self._base.model).precision]}"
        return f"{base} for the base, numpy {np.__version__} float64 for adapters"

    @property
    def sites(self) -> SiteMap:
        """The sites of the base."""
        return self._base.sites

    def run(self, inputs: Mapping[str, np.ndarray], adapter: Adapter | None = None) -> Arrays:
        """All outputs of the base by name and, for an adapter with a head, the result of its task.

        Raises:
            AdapterError: the adapter does not fit the base.
            RequestError: the base cannot compute these inputs.
        """
        if adapter is None:
            return self._whole.run(inputs)
        check_fit([adapter], self._base.sites)
        pieces, feeds = self._pieces(adapter), dict(inputs)
        for (site, replaced), shown in pieces.cut.places:
            feeds[cut_input(site.name, replaced)] = _adapted(pieces, site, shown, feeds, adapter)
        return self._finish(pieces, feeds, inputs, adapter)

    @cached_property
    def _whole(self) -> Pieces:
        return Pieces(self._base.model, self._base.folder, optimize=False, keep=self.keeps_weights)

    @cached_property
    def keeps_weights(self) -> bool:
        """Whether the base's weights are so few that all its pieces may be open."""
        return not weights_are_many(self._base.model)

    def _pieces(self, adapter: Adapter) -> _Pieces:
        """The base cut where an adapter acts, and nowhere else."""
        replaced = {site: adapter.graphs[placement.graph].replaces for site, placement in adapter.placements.items()}
        key = frozenset(replaced.items())
        if key not in self._cuts:
            if len(self._cuts) == _MOST_CUT:
                del self._cuts[next(iter(self._cuts))]
            places = [(site, replaced[site.name]) for site in self._base.sites if site.name in replaced]
            self._cuts[key] = _Pieces(self._base.folder, cut(self._base, places), self.keeps_weights)
        return self._cuts[key]

    def _finish(
        self, pieces: _Pieces, feeds: Mapping[str, np.ndarray], inputs: Mapping[str, np.ndarray], adapter: Adapter
    ) -> Arrays:
        hidden_output = exposed(HEAD, "hidden")
        outputs = pieces.run(feeds, [*self._outputs, hidden_output])
        hidden = outputs.pop(hidden_output)
        if adapter.head is not None:
            mask = inputs[self._base.mask] if self._base.mask else np.ones(hidden.shape[:2])
            name = head_output(self._outputs, adapter.head.output)
            outputs[name] = evaluate_head(adapter, hidden, mask).astype(np.float32)
        return outputs


@dataclass
class _Pieces:
    """The pieces of a cut base, each made when it is first needed; the weights are in memory once.

    Attributes:
        folder: where the base lies.
        cut: the base with its cuts.
        few: whether all pieces may be open at once.
        made: the pieces by what they compute.
    """

    folder: Path
    cut: Cut
    few: bool
    made: dict[tuple[str, ...], Pieces] = field(default_factory=dict)

    def run(self, feeds: Mapping[str, np.ndarray], outputs: Sequence[str]) -> Arrays:
        """Run the piece that computes some outputs."""
        key = tuple(outputs)
        if key not in self.made:
            self.made[key] = Pieces(piece(self.cut.model, outputs), self.folder, optimize=False, keep=self.few)
        return self.made[key].run(feeds)


def _adapted(
    pieces: _Pieces, site: Site, shown: Sequence[str], feeds: Mapping[str, np.ndarray], adapter: Adapter
) -> np.ndarray:
    """What the adapter puts in the place of a site's value, in that value's type."""
    graph = adapter.graphs[adapter.placements[site.name].graph]
    borrows = BORROWED if needs_base_norm(graph) else ()
    needed = [name for name in shown if name in (*graph.inputs, graph.replaces, *borrows)]
    names = {exposed(f"{site.name}.{graph.replaces}", name): name for name in needed}
    values = {names[output]: array for output, array in pieces.run(feeds, list(names)).items()}
    return evaluate_site(adapter, site.name, values, site.norm).astype(values[graph.replaces].dtype)

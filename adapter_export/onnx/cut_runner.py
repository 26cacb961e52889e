"""The reference for a base that exists only as ONNX: the base in ONNX Runtime, the adapters in NumPy float64."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnxruntime as ort

from adapter_export.format.manifest import Precision
from adapter_export.graph.adapter import HEAD, Adapter
from adapter_export.onnx.base import OnnxBase
from adapter_export.onnx.expose import cut, cut_input, exposed, piece
from adapter_export.onnx.graft import SITE_VALUE_NAMES
from adapter_export.onnx.numerics import numerics
from adapter_export.onnx.pieces import Pieces
from adapter_export.onnx.slots import plan_slots
from adapter_export.reference.evaluate import evaluate_head, evaluate_site
from adapter_export.reference.runner import Arrays, head_output
from adapter_export.sites.site import Site

_NAMES: dict[Precision, str] = {
    "fp32": "float32",
    "fp16": "float16",
    "int8": "int8",
    "int8-weights": "float32 with 8-bit weights",
    "int4-weights": "float32 with 4-bit weights",
}


class CutRunner:
    """Computes what a bundle must compute, without the exported graph; a `reference.runner.Runner`.

    The base is cut at its sites. Piece by piece, one more site's values are known, the adapter is evaluated on them
    in float64, and its result goes into the next piece; the last one gives the outputs. Together the pieces do the work
    of one run, and only one of them is open at a time. The base runs in its own precision as it is, not optimised.

    Args:
        base: the base.

    Raises:
        BaseModelError: it cannot be cut.
    """

    def __init__(self, base: OnnxBase) -> None:
        self._base = base
        self._outputs = [record.name for record in base.outputs]
        self._whole = cut(base)
        self._pieces: dict[tuple[str, ...], Pieces] = {}

    @property
    def description(self) -> str:
        """What computes."""
        base = f"onnxruntime {ort.__version__} {_NAMES[numerics(self._base.model).precision]}"
        return f"{base} for the base, numpy {np.__version__} float64 for adapters"

    def run(self, inputs: Mapping[str, np.ndarray], adapter: Adapter | None = None) -> Arrays:
        """All outputs of the base by name and, for an adapter with a head, the result of its task.

        Raises:
            AdapterError: the adapter does not fit the base.
            RequestError: the base cannot compute these inputs.
        """
        if adapter is None:
            return Pieces(self._base.model, self._base.folder, optimize=False).run(inputs)
        plan_slots([adapter], self._base.sites)
        feeds = dict(inputs)
        for site in self._base.sites.sublayers:
            feeds[cut_input(site.name)] = self._adapted(site, feeds, adapter)
        return self._finish(feeds, inputs, adapter)

    def _adapted(self, site: Site, feeds: Mapping[str, np.ndarray], adapter: Adapter) -> np.ndarray:
        shown = self._run(feeds, [exposed(site.name, value) for value in SITE_VALUE_NAMES])
        values = {value: shown[exposed(site.name, value)] for value in SITE_VALUE_NAMES}
        if site.name not in adapter.placements:
            return values["h"]
        return evaluate_site(adapter, site.name, values).astype(values["h"].dtype)

    def _finish(self, feeds: Mapping[str, np.ndarray], inputs: Mapping[str, np.ndarray], adapter: Adapter) -> Arrays:
        hidden_output = exposed(HEAD, "hidden")
        outputs = self._run(feeds, [*self._outputs, hidden_output])
        hidden = outputs.pop(hidden_output)
        if adapter.head is not None:
            mask = inputs[self._base.mask] if self._base.mask else np.ones(hidden.shape[:2])
            name = head_output(self._outputs, adapter.head.output)
            outputs[name] = evaluate_head(adapter, hidden, mask).astype(np.float32)
        return outputs

    def _run(self, feeds: Mapping[str, np.ndarray], outputs: list[str]) -> Arrays:
        key = tuple(outputs)
        if key not in self._pieces:
            self._pieces[key] = Pieces(piece(self._whole, outputs), self._base.folder, optimize=False)
        return self._pieces[key].run(feeds)
